// The answer, coloured by how sure the model was of each token, and what another temperature would do to one token's
// candidates. Engines give probabilities at T = 1; at any other T they are p^(1/T), made to sum to one again, right here.
import { useMemo, useState } from 'react';

const zh = navigator.language.startsWith('zh');
const ROWS = 12;
const percent = (share) => `${(100 * share).toFixed(share < 0.9995 && share >= 0.0005 ? 1 : 0)}%`;
const visible = (text) => text.replace(/ /g, '␣').replace(/\n/g, '⏎').replace(/\t/g, '⇥') || '∅';

function shaped(candidates, temperature) {
  const T = Math.max(temperature, 0.01); // 0 means: always the likeliest
  const weights = candidates.map(([, logprob]) => Math.exp((logprob - candidates[0][1]) / T));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

export default function Tokens() {
  const { tokens, params = {}, low, high } = props;
  const topP = Number(params.top_p ?? 1);
  const [temperature, setTemperature] = useState(Number(params.temperature ?? 1));
  const [chosen, choose] = useState(() => {
    const sureness = tokens.map((token) => token.logprob);
    return sureness.indexOf(Math.min(...sureness)); // where the model was least sure, there is most to see
  });
  const token = tokens[chosen];
  const count = token.candidates.length;
  const [now, plain, coverage, kept] = useMemo(() => {
    const now = shaped(token.candidates, temperature);
    let sum = 0;
    const cut = now.findIndex((share) => (sum += share) >= topP - 1e-9);
    const coverage = token.candidates.reduce((sum, [, logprob]) => sum + Math.exp(logprob), 0);
    return [now, shaped(token.candidates, 1), Math.min(coverage, 1), topP < 1 && cut >= 0 ? cut + 1 : count];
  }, [token, temperature, topP]);

  return (
    <div className="tempera-tokens">
      <div className="tempera-answer">
        {tokens.map((one, at) => (
          <button key={at} type="button" className="tempera-token" data-token={at} aria-pressed={at === chosen}
            title={percent(Math.exp(one.logprob))} onClick={() => choose(at)} style={{ '--hue': Math.round(130 * Math.exp(one.logprob)) }}>
            {one.text || '·'}
          </button>
        ))}
      </div>
      <div className="tempera-dial">
        <span className="tempera-pill">{visible(token.piece)}</span>
        <span className="tempera-t">T = {temperature.toFixed(2)}</span>
        <input type="range" className="tempera-slider" aria-label={zh ? '温度' : 'Temperature'} min="0" max="2" step="0.05" value={temperature}
          title={zh ? `本场景的范围：${low}–${high}` : `This scenario’s range: ${low}–${high}`} style={{ '--low': low, '--high': high }}
          onChange={(event) => setTemperature(Number(event.target.value))} />
        <span className="tempera-about">{zh ? '低温=严谨，高温=创意' : 'low = rigorous, high = creative'}</span>
      </div>
      <div className="tempera-rows">
        {token.candidates.slice(0, ROWS).map(([text], at) => (
          <div key={at} className="tempera-row" data-kept={at < kept} data-sampled={text === token.piece}>
            <span className="tempera-name" title={visible(text)}>{visible(text)}</span>
            <span className="tempera-bar"><i style={{ width: `${100 * now[at]}%` }} /><u style={{ left: `calc(${100 * plain[at]}% - 1px)` }} /></span>
            <span className="tempera-share">{percent(now[at])}</span>
            {at + 1 === kept && kept < count ? <div className="tempera-cut">top_p = {topP}</div> : null}
          </div>
        ))}
      </div>
      <p className="tempera-coverage">
        {zh
          ? `在前 ${count} 个候选内归一化，它们合计占原始概率的 ${percent(coverage)} · `
          : `Shares within the likeliest ${count}, which hold ${percent(coverage)} of the original probability · `}
        <u /> = T 1.0
        {kept > ROWS && kept < count ? ` · top_p = ${topP} ${zh ? `保留前 ${kept} 个` : `keeps ${kept}`}` : ''}
      </p>
    </div>
  );
}
