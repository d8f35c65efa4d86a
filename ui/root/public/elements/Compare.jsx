// The same question at several temperatures, in columns that fill while they are written.
// The component is kept on `window`, so that a new picture updates it in place instead of building it anew.
import { useState } from 'react';
import { ArrowRight, ThumbsDown, ThumbsUp } from 'lucide-react';
import { Button } from '@/components/ui/button';
import { Markdown } from '@/components/markdown';

window.tempera = window.tempera || {};
window.tempera.Compare = window.tempera.Compare || function Compare({ columns, done, rate, keep }) {
  const zh = navigator.language.startsWith('zh');
  const [busy, setBusy] = useState(false);
  const low = columns[0].asked;
  const high = columns[columns.length - 1].asked;
  const COLOURS = ['#2563eb', '#0d9488', '#ea580c'];
  const NAMES = zh ? ['严谨', '平衡', '创意'] : ['rigorous', 'balanced', 'creative'];
  const FINISH = zh ? { stopped: '已停止', length: '达到最大长度', broken: '中断' } : { stopped: 'stopped', length: 'cut', broken: 'broken off' };
  const THUMBS = [[1, ThumbsUp, zh ? '有帮助' : 'Helpful'], [-1, ThumbsDown, zh ? '没有帮助' : 'Not helpful']];

  const thumb = async (at, value) => {
    const given = columns[at].thumb === value ? null : value;
    setBusy(true);
    try {
      const reply = await rate({ name: 'column_feedback', payload: { exchange: columns[at].exchange, value: given } });
      if (reply.response) await keep({ done, columns: columns.map((one, i) => (i === at ? { ...one, thumb: given } : one)) });
    } finally {
      setBusy(false);
    }
  };

  return (
    <div className="tempera-columns" style={{ '--columns': columns.length }} data-done={done}>
      {columns.map((column, at) => {
        const share = high > low ? (column.asked - low) / (high - low) : 0;
        const third = share < 1 / 3 ? 0 : share > 2 / 3 ? 2 : 1;
        const adjusted = (column.adjusted || []).find(({ name }) => name === 'temperature');
        const writing = !done && !column.finish;
        const facts = column.tokens ? [zh ? `${column.tokens} 词元` : `${column.tokens} tokens`, `${column.seconds} s`] : [];
        if (FINISH[column.finish]) facts.push(FINISH[column.finish]);
        const alike = `${Math.round(column.alike * 100)}%`;
        return (
          <section key={column.asked} className="tempera-column" data-temperature={column.asked} style={{ '--colour': COLOURS[third] }}>
            <header>
              <b>T = {column.asked}</b>
              <span className="tempera-pill">{NAMES[third]}</span>
              {adjusted ? <span className="tempera-adjusted"><ArrowRight /> {adjusted.used}</span> : null}
            </header>
            <div className="tempera-text" data-writing={writing}>
              {column.text ? <Markdown>{column.text}</Markdown> : null}
              {column.error ? <p className="tempera-error">{column.error}</p> : null}
            </div>
            <footer>
              <span>
                {facts.join(' · ')}
                {done && at > 0 && column.text ? (
                  <span className="tempera-alike block" title={zh ? '与第一列共有的词和词对所占的比例' : 'Share of words and word pairs in common with the first column'}>
                    {zh ? `与 T = ${low} 相似 ${alike}` : `${alike} like T = ${low}`}
                  </span>
                ) : null}
              </span>
              {column.exchange ? (
                <span className="tempera-thumbs">
                  {THUMBS.map(([value, Icon, label]) => (
                    <Button key={value} variant="ghost" size="icon" className="text-muted-foreground" data-value={value} aria-label={label} title={label}
                      aria-pressed={column.thumb === value} disabled={!done || busy} onClick={() => thumb(at, value)}>
                      <Icon />
                    </Button>
                  ))}
                </span>
              ) : null}
            </footer>
          </section>
        );
      })}
    </div>
  );
};

const Compare = window.tempera.Compare;
export default <Compare {...props} rate={callAction} keep={updateElement} />;
