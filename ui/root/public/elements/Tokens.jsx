// The answer, coloured by how sure the model was of each token, and what another temperature would do to one token's candidates.
// Engines give probabilities at T = 1; any other T is p^(1/T), made to sum to one again, here in the browser.
import { useMemo, useState } from 'react';
import { Badge } from '@/components/ui/badge';

const zh = navigator.language.startsWith('zh');
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 && share >= 0.0005 ? 1 : 0)}%`;
const visible = (text) => text.replace(/ /g, '␣').replace(/\n/g, '⏎').replace(/\t/g, '⇥') || '∅';

function shaped(candidates, temperature) {
  const T = Math.max(temperature, 0.01);
  const top = candidates[0][1];
  const weights = candidates.map(([, logprob]) => Math.exp((logprob - top) / T));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

function Slider({ value, low, high, onChange }) {
  const at = (t) => `calc(${(t / 2) * 100}% + ${(0.5 - t / 2) * 16}px)`;
  return (
    <div className="relative flex-grow min-w-[10rem]">
      <input type="range" className="tempera-slider relative z-10" aria-label={zh ? '温度' : 'Temperature'} min="0" max="2" step="0.05" value={value}
        onChange={(event) => onChange(Number(event.target.value))} />
      <div className="tempera-range absolute h-1 rounded-full bg-primary/40" style={{ left: at(low), width: `calc(${at(high)} - ${at(low)})`, top: '1.35rem' }}
        title={zh ? '本场景的范围' : 'This scenario’s range'} />
    </div>
  );
}

export default function Tokens() {
  const { tokens, params = {}, low, high } = props;
  const [chosen, choose] = useState(() => {
    const doubt = tokens.map((token) => token.logprob);
    return doubt.indexOf(Math.min(...doubt));
  });
  const [temperature, setTemperature] = useState(Number(params.temperature ?? 1));
  const topP = Number(params.top_p ?? 1);
  const token = tokens[chosen];
  const [now, plain, coverage, kept] = useMemo(() => {
    const now = shaped(token.candidates, temperature);
    const plain = shaped(token.candidates, 1);
    const coverage = token.candidates.reduce((sum, [, logprob]) => sum + Math.exp(logprob), 0);
    let sum = 0;
    const cut = now.findIndex((share) => (sum += share) >= topP - 1e-9);
    return [now, plain, Math.min(coverage, 1), topP < 1 && cut >= 0 ? cut + 1 : now.length];
  }, [token, temperature, topP]);
  const rows = token.candidates.slice(0, 12);

  return (
    <div className="tempera-tokens flex flex-col gap-3 rounded-xl border bg-card p-4 shadow-sm">
      <div className="leading-8 whitespace-pre-wrap break-words">
        {tokens.map((one, at) => (
          <button key={at} type="button" data-token={at} title={percent(Math.exp(one.logprob))} onClick={() => choose(at)}
            className="tempera-token rounded-[4px] py-0.5 whitespace-pre-wrap text-start"
            style={{
              background: `hsla(${Math.round(128 * Math.exp(one.logprob))}, 75%, 50%, 0.26)`,
              outline: at === chosen ? '2px solid hsl(var(--primary))' : 'none'
            }}>
            {one.text || '·'}
          </button>
        ))}
      </div>
      <div className="flex flex-wrap items-center gap-x-3 gap-y-2 text-sm">
        <Badge variant="outline" className="font-mono">{visible(token.piece)}</Badge>
        <span className="tempera-t tabular-nums w-16">T = {temperature.toFixed(2)}</span>
        <Slider value={temperature} low={low} high={high} onChange={setTemperature} />
        <span className="text-muted-foreground">{zh ? '低温=严谨，高温=创意' : 'Low = rigorous, high = creative'}</span>
      </div>
      <div className="grid items-center gap-x-3 gap-y-1.5 text-xs tabular-nums" style={{ gridTemplateColumns: 'minmax(4rem, max-content) 1fr 3rem' }}>
        {rows.map(([text], at) => (
          <div key={at} className="tempera-row contents" data-kept={at < kept} style={{ opacity: at < kept ? 1 : 0.45 }}>
            <span className={`font-mono text-end truncate max-w-[9rem] ${text === token.piece ? 'font-bold' : ''}`} style={{ opacity: at < kept ? 1 : 0.45 }}>{visible(text)}</span>
            <span className="relative block h-4 rounded bg-muted">
              <span className="absolute inset-y-0 left-0 rounded bg-primary" style={{ width: `${100 * now[at]}%`, opacity: at < kept ? 0.9 : 0.3 }} />
              <span className="tempera-mark absolute inset-y-0 w-0.5 bg-foreground" style={{ left: `calc(${100 * plain[at]}% - 1px)` }} />
            </span>
            <span className="tempera-share text-end" style={{ opacity: at < kept ? 1 : 0.45 }}>{percent(now[at])}</span>
            {at + 1 === kept && kept < token.candidates.length ? (
              <span className="tempera-cut col-span-3 flex items-center gap-2 text-muted-foreground">
                <span className="flex-grow border-t border-dashed border-foreground/50" />top_p = {topP}<span className="flex-grow border-t border-dashed border-foreground/50" />
              </span>
            ) : null}
          </div>
        ))}
      </div>
      <p className="tempera-coverage text-xs text-muted-foreground">
        {zh
          ? `前 ${token.candidates.length} 个候选，合计占原始概率的 ${percent(coverage)}，在其中归一化`
          : `Within the likeliest ${token.candidates.length}, which are ${percent(coverage)} of the original probability`}
        {' · '}<span className="inline-block w-0.5 h-3 bg-foreground align-middle" /> = T 1.0
        {kept > rows.length && kept < token.candidates.length ? ` · top_p = ${topP}: ${kept}` : ''}
      </p>
    </div>
  );
}
