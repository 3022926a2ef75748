// One model: its versions and tabs.

import { html, useEffect, useState } from "./vendor/preact.js";
import { hrefOf, pathOf } from "./data.js";
import { keyOf } from "./live.js";
import { Accuracy, Facts, StateBadge, precisionText, trafficText } from "./parts.js";
import { count, milliseconds, number, percent } from "./format.js";
import { Charts } from "./charts.js";
import { Requests } from "./requests.js";
import { Plan } from "./plan.js";
import { Versions } from "./versions.js";
import { TryIt } from "./try.js";
import { Commands } from "./commands.js";

const TABS = {
  live: "Live",
  plan: "Plan",
  versions: "Versions",
  report: "Report",
  try: "Try it",
  commands: "Commands",
};

export function ModelPage({ route, live }) {
  const { name, version, tab } = route;
  const card = live?.cards.get(keyOf(name, version));
  const versions = [...(live?.cards.values() ?? [])].filter((each) => each.name === name);
  if (!card) {
    return html`
      <p class="crumbs"><a href="#/">Models</a></p>
      <p class="quiet">${live?.connected ? `This server has no model ${name} version ${version}.` : "Waiting for the server…"}</p>
    `;
  }
  const Tab = { live: Live, plan: Plan, versions: Versions, report: Report, try: TryIt, commands: Commands }[tab] ?? Live;
  return html`
    <p class="crumbs"><a href="#/">Models</a></p>
    <div class="title">
      <h1>${name} <small>v${version}</small></h1>
      <${StateBadge} card=${card} />
      ${versions.length > 1 && html`<${VersionPicker} versions=${versions} route=${route} />`}
    </div>
    ${card.reason && html`<p class="reason">${card.reason}</p>`}
    ${card.precision && html`<p class="how">${precisionText(card)} · ${card.device} · ${card.runtime} · batching ${card.batching}${trafficText(card) && ` · ${trafficText(card)}`}</p>`}
    ${card.note && html`<p class="how">${card.note}</p>`}
    <nav class="tabs" aria-label="Views of the model">
      ${Object.entries(TABS).map(([key, words]) => html`<a href=${hrefOf(name, version, key)} aria-current=${key === tab ? "page" : null}>${words}</a>`)}
    </nav>
    <${Tab} key=${version} card=${card} cards=${versions} live=${live} />
  `;
}

function VersionPicker({ versions, route }) {
  const go = (event) => (location.hash = hrefOf(route.name, event.target.value, route.tab));
  return html`
    <label class="quiet">version
      <select aria-label="Version" value=${route.version} onChange=${go}>
        ${versions.map((each) => html`<option value=${each.version}>${each.version} (${each.state})</option>`)}
      </select>
    </label>
  `;
}

function Live({ card, live }) {
  return html`
    <div class="trio">
      <section class="sheet" aria-label="Now">
        <h3>Last 30 seconds</h3>
        <${Facts} rows=${[
          ["requests/s", number(card.rate)],
          ["p50", milliseconds(card.p50_ms)],
          ["p99", milliseconds(card.p99_ms)],
          ["queue", count(card.queue)],
          ["mean batch", number(card.batch)],
          ["errors", percent(card.failed_share), card.failed_share > 0],
        ]} />
      </section>
      <section class="sheet" aria-label="Since it was loaded">
        <h3>Since it was loaded</h3>
        <${Facts} rows=${[
          ["answered", count(card.requests)],
          ["failed", count(card.failures), card.failures > 0],
          ["guard reruns", count(card.guarded), card.guarded > 0],
          ["not repaired", count(card.unrepaired), card.unrepaired > 0],
          ["out of range", count(card.outside), card.outside > 0],
        ]} />
      </section>
      ${card.precision && html`<section class="sheet" aria-label="Accuracy"><h3>Accuracy of half against FP32</h3><${Accuracy} card=${card} /><p class="how">This shows ${card.vouches_for}.</p></section>`}
    </div>
    <${Charts} live=${live} card=${card} />
    <${Requests} card=${card} />
  `;
}

function Report({ card }) {
  const path = `${pathOf(card)}/report.html`;
  const [error, setError] = useState(null);
  useEffect(() => {
    setError(null);
    fetch(path).then(async (answer) => answer.ok || setError((await answer.json()).error));
  }, [path]);
  if (error) return html`<p class="quiet">${error}</p>`;
  return html`
    <p><a href=${path} target="_blank" rel="noopener">Open the report on its own page</a></p>
    <iframe class="report" src=${path} sandbox="allow-scripts" title=${`Export report of ${card.name} version ${card.version}`}></iframe>
  `;
}
