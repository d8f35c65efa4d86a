// The small print under an answer: which parameters were really used, and what the gateway adjusted.
import { ArrowRight } from 'lucide-react';

const zh = navigator.language.startsWith('zh');
const NEUTRAL = { top_p: '1', top_k: '0', min_p: '0', repetition_penalty: '1', presence_penalty: '0', frequency_penalty: '0' };
const NAMES = zh ? { temperature: '温度', max_tokens: '最大长度' } : {};
const WHY = zh
  ? { bound: '超出本场景的范围', pin: '本场景固定该值', cap: '超出模型的上限', route: '此接口不支持' }
  : { bound: 'outside this scenario’s range', pin: 'fixed by this scenario', cap: 'beyond the model’s limit', route: 'not possible here' };
const FINISH = zh
  ? { stopped: '已停止', broken: '中断', length: '达到最大长度' }
  : { stopped: 'stopped', broken: 'broken off', length: 'cut at the longest length set' };

export default function Used() {
  const { params = {}, adjusted = [], tokens, seconds, finish } = props;
  const used = Object.entries(params).filter(([name, value]) => NEUTRAL[name] !== value);
  const parts = used.map(([name, value]) => `${NAMES[name] || name} ${value}`);
  if (tokens) parts.push(zh ? `${tokens} 词元` : `${tokens} tokens`, `${seconds} s`);
  if (FINISH[finish]) parts.push(FINISH[finish]);
  return (
    <div className="tempera-used">
      <span>{parts.join(' · ')}</span>
      {adjusted.map(({ name, asked, used, by }) => (
        <span key={name} className="tempera-adjusted">
          {NAMES[name] || name} {asked} <ArrowRight /> {used} · {WHY[by] || by}
        </span>
      ))}
    </div>
  );
}
