// The answer, coloured by how sure the model was of each token, and what another temperature would do to one token's
// candidates. Engines give probabilities at T = 1; at any other T they are p^(1/T), made to sum to one again, right here.
import { useMemo, useState } from 'react';

const zh = navigator.language.startsWith('zh');
const ROWS = 10;
const percent = (share) => `${(100 * share).toFixed(share < 0.9995 && share >= 0.0005 ? 1 : 0)}%`;
const visible = (text) => text.replace(/ /g, '␣').replace(/\n/g, '⏎').replace(/\t/g, '⇥') || '∅';

function shaped(candidates, temperature) {
  const T = Math.max(temperature, 0.01); // 0 means: always the likeliest
  const weights = candidates.map(([, logprob]) => Math.exp((logprob - candidates[0][1]) / T));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

// How many candidates top_p keeps, null when it reaches beyond them. What is not shown counts too: at T = 1 its share is
// known, elsewhere it is taken as if all of it were as likely as the last candidate (too much of it below 1, too little above).
function reach(candidates, shares, coverage, temperature, topP) {
  const [first, last] = [candidates[0][1], candidates[candidates.length - 1][1]];
  const T = Math.max(temperature, 0.01);
  const hidden = (1 - coverage) * Math.exp(last * (1 / T - 1) - first / T) * shares[0];
  let sum = 0;
  const at = shares.findIndex((share) => (sum += share / (1 + hidden)) >= topP - 1e-9);
  return at < 0 ? null : at + 1;
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
  const sampled = token.candidates.findIndex(([text]) => text === token.piece);
  const rows = [...Array(Math.min(count, ROWS)).keys()];
  if (sampled >= ROWS) rows[ROWS - 1] = sampled; // the token that stands in the answer is always shown
  const [now, plain, coverage, kept] = useMemo(() => {
    const now = shaped(token.candidates, temperature);
    const coverage = Math.min(1, token.candidates.reduce((sum, [, logprob]) => sum + Math.exp(logprob), 0));
    return [now, shaped(token.candidates, 1), coverage, reach(token.candidates, now, coverage, temperature, topP)];
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
        {rows.map((at) => (
          <div key={at} className="tempera-row" data-kept={kept === null || at < kept} data-sampled={at === sampled}>
            <span className="tempera-name" title={visible(token.candidates[at][0])}>{visible(token.candidates[at][0])}</span>
            <span className="tempera-bar"><i style={{ width: `${100 * now[at]}%` }} /><u style={{ left: `calc(${100 * plain[at]}% - 1px)` }} /></span>
            <span className="tempera-share">{percent(now[at])}</span>
            {at + 1 === kept && topP < 1 ? <div className="tempera-cut">top_p = {topP}</div> : null}
          </div>
        ))}
      </div>
      <p className="tempera-coverage">
        {zh
          ? `在 ${count} 个候选内归一化，它们合计占原始概率的 ${percent(coverage)} · `
          : `Shares among ${count} candidates, which hold ${percent(coverage)} of the original probability · `}
        <u /> = T 1.0
        {kept === null && topP < 1 ? ` · top_p = ${topP} ${zh ? '的截断线在这些候选之外' : 'reaches beyond them'}` : ''}
        {kept > rows.length ? ` · top_p = ${topP} ${zh ? `保留前 ${kept} 个` : `keeps ${kept}`}` : ''}
      </p>
    </div>
  );
}
