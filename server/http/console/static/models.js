// All models: one card each, sorted and filtered.

import { html, useMemo, useState } from "./vendor/preact.js";
import { Accuracy, Facts, StateBadge, precisionText, trafficText } from "./parts.js";
import { count, milliseconds, number, percent } from "./format.js";

const AT_ONCE = 60; // cards that are drawn before "show more"; a thousand would make typing in the filter slow

const TROUBLE = { failed: 0, degraded: 1, loading: 3, unloading: 4, ready: 5, unloaded: 6 };

const trouble = (card) =>
  card.state === "ready" && card.accuracy.state === "over" ? 2 : (TROUBLE[card.state] ?? 5);

const descending = (value) => (a, b) => (value(b) ?? -1) - (value(a) ?? -1);

const ORDERS = {
  "attention first": (a, b) => trouble(a) - trouble(b) || descending((card) => card.rate)(a, b),
  "name": () => 0,
  "requests per second": descending((card) => card.rate),
  "slowest (p99)": descending((card) => card.p99_ms),
  "error rate": descending((card) => card.failed_share),
  "accuracy budget used": descending((card) => card.accuracy.worst && (card.accuracy.worst.use ?? Infinity)),
  "guard reruns": descending((card) => card.guarded + card.unrepaired),
};

const STATES = ["all", "ready", "failed", "degraded", "over budget", "loading", "unloaded"];

export function ModelsPage({ live }) {
  const [filter, setFilter] = useState("");
  const [state, setState] = useState("all");
  const [order, setOrder] = useState("attention first");
  const [most, setMost] = useState(AT_ONCE);

  const cards = useMemo(() => [...(live?.cards.values() ?? [])].sort(byName), [live?.cards]);
  const found = useMemo(
    () => cards.filter((card) => matches(card, filter, state)).sort(ORDERS[order]),
    [cards, filter, state, order],
  );
  if (!live?.cards.size && !live?.connected) return html`<p class="quiet">Waiting for the server…</p>`;
  return html`
    <h1>Models</h1>
    <${Totals} cards=${cards} onPick=${setState} />
    <form class="tools" role="search" onSubmit=${(event) => event.preventDefault()}>
      <label>Filter <input type="search" value=${filter} placeholder="name or precision" onInput=${(e) => setFilter(e.target.value)} /></label>
      <label>State
        <select value=${state} onChange=${(e) => setState(e.target.value)}>${STATES.map((each) => html`<option>${each}</option>`)}</select>
      </label>
      <label>Order
        <select value=${order} onChange=${(e) => setOrder(e.target.value)}>${Object.keys(ORDERS).map((each) => html`<option>${each}</option>`)}</select>
      </label>
      <output aria-live="polite">${found.length === cards.length ? count(cards.length) : `${count(found.length)} of ${count(cards.length)}`} ${cards.length === 1 ? "version" : "versions"}</output>
    </form>
    <ul class="cards">
      ${found.slice(0, most).map((card) => html`<${Card} key=${`${card.name}/${card.version}`} card=${card} />`)}
    </ul>
    ${found.length === 0 && html`<p class="quiet">No model matches.</p>`}
    ${found.length > most && html`<button class="more" onClick=${() => setMost(most + 10 * AT_ONCE)}>Show ${count(Math.min(found.length - most, 10 * AT_ONCE))} more of ${count(found.length)}</button>`}
  `;
}

function Totals({ cards, onPick }) {
  const rate = cards.reduce((sum, card) => sum + (card.rate ?? 0), 0);
  const tallies = [
    ["ready", cards.filter((card) => card.state === "ready").length],
    ["degraded", cards.filter((card) => card.state === "degraded").length],
    ["failed", cards.filter((card) => card.state === "failed").length],
    ["over budget", cards.filter((card) => card.accuracy.state === "over").length],
  ];
  return html`
    <div class="totals">
      <span><strong>${number(rate)}</strong> requests/s</span>
      ${tallies.map(
        ([name, total]) => (total > 0 || name === "ready") &&
          html`<button class="tally ${name.replace(" ", "-")}" onClick=${() => onPick(name)}><strong>${count(total)}</strong> ${name}</button>`,
      )}
    </div>
  `;
}

function Card({ card }) {
  const href = `#/model/${encodeURIComponent(card.name)}/${encodeURIComponent(card.version)}`;
  const isUp = card.state === "ready" || card.state === "degraded";
  return html`
    <li class="card ${card.state}" aria-label=${`${card.name} version ${card.version}, ${card.state}`}>
      <div class="head">
        <h2><a href=${href}>${card.name}</a> <small>v${card.version}</small></h2>
        <${StateBadge} card=${card} />
      </div>
      ${isUp ? html`<${Numbers} card=${card} />` : html`<p class="reason">${card.reason}</p>`}
    </li>
  `;
}

function Numbers({ card }) {
  return html`
    <p class="how" title=${card.note || null}>${precisionText(card)} · ${card.device} · ${card.runtime}${trafficText(card) && ` · ${trafficText(card)}`}</p>
    <${Accuracy} card=${card} />
    <${Facts} rows=${[
      ["requests/s", number(card.rate)],
      ["p50", milliseconds(card.p50_ms)],
      ["p99", milliseconds(card.p99_ms)],
      ["queue", count(card.queue)],
      ["mean batch", number(card.batch)],
      ["errors", percent(card.failed_share), card.failed_share > 0],
      ["guard reruns", count(card.guarded + card.unrepaired), card.guarded + card.unrepaired > 0],
      ["out of range", count(card.outside), card.outside > 0],
    ]} />
  `;
}

function matches(card, filter, state) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const text = `${card.name} v${card.version} ${card.precision} ${card.runtime} ${card.device}`.toLowerCase();
  const isState = state === "all" || card.state === state || (state === "over budget" && card.accuracy.state === "over");
  return isState && words.every((word) => text.includes(word));
}

const byName = (a, b) => a.name.localeCompare(b.name) || a.version.localeCompare(b.version, "en", { numeric: true });
