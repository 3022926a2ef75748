// Parts that both pages show: the state, the accuracy gauge, rows of numbers.

import { html } from "./vendor/preact.js";
import { count, number, precision } from "./format.js";

export function StateBadge({ card }) {
  return html`<span class="badge ${card.state}">${card.state}</span>`;
}

// A definition list of [name, value, stands out].
export function Facts({ rows }) {
  return html`
    <dl class="facts">
      ${rows.map(([name, value, stands]) => html`<div class=${stands ? "stands-out" : ""}><dt>${name}</dt><dd>${value}</dd></div>`)}
    </dl>
  `;
}

export function precisionText(card) {
  const moved = card.serving && card.serving !== card.precision;
  return moved ? `${precision(card.precision)}, now answered in ${precision(card.serving)}` : precision(card.precision);
}

// The version's share of requests that name no version, and its aliases; empty for a model without a choice.
export function trafficText({ traffic }) {
  const share = traffic.percent === 100 ? "" : `${number(traffic.percent)}% of traffic`;
  return [...traffic.names, share].filter(Boolean).join(", ");
}

// The gauge: how much of the accuracy budget is used, with the confidence interval.
export function Accuracy({ card }) {
  const { state, samples, worst } = card.accuracy;
  if (state === "none") {
    const words = card.precision === "fp32" ? "FP32 itself: nothing to compare" : "no FP32 reference to compare with";
    return html`<div class="accuracy off"><span>accuracy</span> <span>${words}</span></div>`;
  }
  if (state === "off") return html`<div class="accuracy off"><span>accuracy</span> <span>not sampled (<code>--shadow</code>)</span></div>`;
  if (!worst) {
    return html`<div class="accuracy unknown"><span>accuracy</span> <span>unknown (${count(samples)} samples)</span></div>`;
  }
  return html`
    <div class="accuracy ${state}">
      <span>accuracy</span>
      <span>${state === "unknown" ? `unknown (${count(samples)} samples)` : state === "over" ? "over budget" : "within budget"}</span>
      <${Gauge} gauge=${worst} state=${state} />
    </div>
  `;
}

export const METRICS = {
  relative_l2: "relative L2",
  max_abs: "largest error",
  cosine: "cosine",
  top1: "top-1 agreement",
  agree: "agreement",
  steps: "steps",
  boxes: "boxes changed",
};

// One limit of the budget: a bar from 0 to twice the limit, a mark at the limit, and the interval as a band.
export function Gauge({ gauge, state }) {
  const value = gauge.value ?? Infinity; // which JSON does not have
  const at = (value) => Math.max(0, Math.min(used(gauge, value), 2)) * 50;
  const [low, high] = gauge.low === null ? [value, value] : [gauge.low, gauge.high];
  const [from, to] = [at(low), at(high)].sort((a, b) => a - b);
  const interval = gauge.low === null ? "" : ` (${number(gauge.low)} to ${number(gauge.high)})`;
  const relation = gauge.at_least ? "at least" : "at most";
  const text = `${gauge.output}: ${METRICS[gauge.metric]} ${number(value)}${interval}, budget ${relation} ${number(gauge.limit)}`;
  return html`
    <svg class="gauge ${state}" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label=${text}>
      <title>${text}</title>
      <rect class="track" x="0" y="3" width="100" height="4" />
      <rect class="fill" x="0" y="3" width=${Math.max(at(value), 0.5)} height="4" />
      <rect class="interval" x=${from} y="1.5" width=${Math.max(to - from, 0.6)} height="7" />
      <rect class="limit" x="49.7" y="0" width="0.8" height="10" />
    </svg>
    <span class="reading">${METRICS[gauge.metric]} <b>${number(value)}</b>${interval && html`<small>${interval}</small>`} of ${number(gauge.limit)}</span>
  `;
}

function used(gauge, value) {
  const [error, allowed] = gauge.at_least ? [1 - value, 1 - gauge.limit] : [value, gauge.limit];
  return allowed > 0 ? error / allowed : error > 0 ? 2 : 0;
}
