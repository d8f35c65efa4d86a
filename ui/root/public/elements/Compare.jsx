// The same question at several temperatures, in columns that fill while they are written.
// The component is kept on `window`, so that a new picture updates it in place instead of building it anew.
import { useState } from 'react';
import { ArrowRight, ThumbsDown, ThumbsUp } from 'lucide-react';
import { Badge } from '@/components/ui/badge';
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
  const third = (share) => (share < 1 / 3 ? 0 : share > 2 / 3 ? 2 : 1);

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
    <div className="tempera-columns" style={{ '--columns': columns.length }}>
      {columns.map((column, at) => {
        const share = high > low ? (column.asked - low) / (high - low) : 0;
        const colour = COLOURS[third(share)];
        const finish = FINISH[column.finish];
        const adjusted = (column.adjusted || []).find(({ name }) => name === 'temperature');
        const writing = !done && !column.finish;
        return (
          <section key={column.asked} data-temperature={column.asked} className="tempera-column flex flex-col rounded-xl border bg-card shadow-sm overflow-hidden">
            <div style={{ background: colour, height: 3 }} />
            <header className="flex flex-wrap items-center gap-2 px-3.5 pt-3 pb-2">
              <span className="font-semibold tabular-nums" style={{ color: colour }}>T = {Number(column.asked).toFixed(2).replace(/0$/, '')}</span>
              <Badge variant="outline" className="font-normal">{NAMES[third(share)]}</Badge>
              {adjusted ? (
                <span className="inline-flex items-center gap-1 rounded-full px-2 py-0.5 text-xs bg-amber-500/15 text-amber-800 dark:text-amber-300">
                  <ArrowRight className="!size-3" /> {adjusted.used}
                </span>
              ) : null}
            </header>
            <div className="tempera-text flex-grow px-3.5 pb-3 min-h-[4rem] break-words">
              {column.error ? <p className="text-sm text-destructive">{column.error}</p> : null}
              {column.text ? <Markdown>{column.text + (writing ? ' ▍' : '')}</Markdown> : null}
              {!column.text && writing ? <span className="inline-block animate-pulse text-muted-foreground">▍</span> : null}
            </div>
            <footer className="flex items-center justify-between gap-2 pl-3.5 pr-1.5 py-1 border-t text-xs text-muted-foreground tabular-nums">
              <span>
                {column.tokens ? (zh ? `${column.tokens} 词元 · ${column.seconds} s` : `${column.tokens} tok · ${column.seconds} s`) : '…'}
                {finish ? ` · ${finish}` : ''}
                {done && at > 0 && column.text ? (
                  <span className="tempera-alike block" title={zh ? '与第一列共有的词对所占比例' : 'Share of word pairs in common with the first column'}>
                    {zh ? `与 T = ${low} 相似 ` : `${Math.round(column.alike * 100)}% like T = ${low}`}{zh ? `${Math.round(column.alike * 100)}%` : ''}
                  </span>
                ) : null}
              </span>
              {column.exchange ? (
                <span className="flex">
                  {[[1, ThumbsUp, zh ? '有帮助' : 'Helpful', 'text-green-600'], [-1, ThumbsDown, zh ? '没有帮助' : 'Not helpful', 'text-red-600']].map(([value, Icon, label, on]) => (
                    <Button key={value} variant="ghost" size="icon" aria-label={label} title={label} aria-pressed={column.thumb === value}
                      className={`h-8 w-8 ${column.thumb === value ? on : 'text-muted-foreground'}`} disabled={!done || busy} onClick={() => thumb(at, value)}>
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
