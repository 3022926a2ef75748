// Charts of a model's history, drawn by uPlot.

import uPlot from "./vendor/uplot.js";
import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { milliseconds, number, percent } from "./format.js";

const SPANS = { minutes: "15 minutes", hours: "6 hours" };

const COLOURS = ["--accent", "--single", "--good", "--bad", "--warn", "--quiet"];

export function Charts({ live, card }) {
  const [span, setSpan] = useState("minutes");
  const points = live[span];
  const column = (name) => points?.columns[name] ?? [];
  const errors = Object.entries(points?.errors ?? {});
  const measured = errors.some(([, values]) => values.some((value) => value !== null));
  const limit = card.accuracy.worst?.metric === "relative_l2" ? card.accuracy.worst.limit : null;
  return html`
    <div class="bar">
      <div class="segmented" role="group" aria-label="Time span">
        ${Object.entries(SPANS).map(([key, words]) => html`<button aria-pressed=${key === span ? "true" : "false"} onClick=${() => setSpan(key)}>${words}</button>`)}
      </div>
      <span class="quiet">${span === "minutes" ? "a point every 2 seconds while a console is open" : "a point a minute"}</span>
    </div>
    <div class="charts">
      <${Chart} title="Latency" times=${points?.times} show=${milliseconds} series=${[["p50", column("p50_ms")], ["p99", column("p99_ms")]]} />
      <${Chart} title="Requests per second" times=${points?.times} series=${[["requests/s", column("rate")]]} />
      <${Chart} title="Rows per run" times=${points?.times} series=${[["mean batch", column("batch")]]} />
      <${Chart} title="Queue" times=${points?.times} series=${[["waiting", column("queue")]]} />
      <${Chart} title="Failed requests" times=${points?.times} show=${percent} series=${[["share", column("failures")]]} />
      <${Chart} title="Guard and range drift" times=${points?.times} series=${[["guard reruns/min", column("guarded")], ["inputs outside range/min", column("outside")]]} />
      <${Chart} title="Accuracy: relative L2 against FP32" times=${measured ? points?.times : []} series=${errors} limit=${limit} empty="no sampled request in this span" />
    </div>
  `;
}

function Chart({ title, times, series, show = number, limit = null, empty = "no requests in this span" }) {
  const place = useRef(null);
  const plot = useRef(null);
  const hasData = times?.length > 0 && series.some(([, values]) => values.some((value) => value !== null));
  const latest = series.map(([name, values]) => [name, lastOf(values)]);
  const words = latest.map(([name, value]) => `${name} ${show(value)}`).join(", ");
  const shape = JSON.stringify([series.map(([name]) => name), limit, hasData]);

  useEffect(() => {
    if (!hasData) return undefined;
    const draw = () => {
      plot.current?.destroy();
      plot.current = new uPlot(optionsOf(place.current, series, show, limit), dataOf(times, series, limit), place.current);
    };
    draw();
    const resized = new ResizeObserver(() => plot.current?.setSize({ width: place.current.clientWidth, height: 150 }));
    resized.observe(place.current);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", draw);
    return () => {
      resized.disconnect();
      scheme.removeEventListener("change", draw);
      plot.current?.destroy();
      plot.current = null;
    };
  }, [shape]);
  useEffect(() => {
    if (hasData) plot.current?.setData(dataOf(times, series, limit));
  }, [times]);

  return html`
    <figure class="chart" role="img" aria-label=${`${title}: ${hasData ? `now ${words}` : empty}`}>
      <figcaption>${title} <span>${hasData ? latest.map(([, value]) => show(value)).slice(0, 3).join(" · ") : ""}</span></figcaption>
      ${hasData ? html`<div class="plot" ref=${place}></div>` : html`<div class="empty">${empty}</div>`}
      <${Legend} series=${series} limit=${limit} show=${show} isShown=${hasData && (series.length > 1 || limit !== null)} />
    </figure>
  `;
}

function Legend({ series, limit, show, isShown }) {
  if (!isShown) return null;
  return html`
    <ul class="legend" aria-hidden="true">
      ${series.map(([name], index) => html`<li><i ref=${(element) => element && (element.style.background = `var(${COLOURS[index % COLOURS.length]})`)}></i>${name}</li>`)}
      ${limit !== null && html`<li><i ref=${(element) => element && (element.style.background = "var(--bad)")}></i>budget ${show(limit)}</li>`}
    </ul>
  `;
}

function dataOf(times, series, limit) {
  const seconds = times.map((ms) => ms / 1000);
  const limits = limit === null ? [] : [seconds.map(() => limit)];
  return [seconds, ...series.map(([, values]) => values), ...limits];
}

function optionsOf(place, series, show, limit) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const lines = series.map(([name], index) => ({
    label: name,
    stroke: colour(COLOURS[index % COLOURS.length]),
    width: 1.6,
    points: { size: 4 },
    spanGaps: false,
  }));
  if (limit !== null) lines.push({ label: "budget", stroke: colour("--bad"), width: 1.4, dash: [6, 4], points: { show: false } });
  return {
    width: place.clientWidth,
    height: 150,
    legend: { show: false },
    cursor: { y: false, points: { size: 6 } },
    scales: { y: { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.1 : 1] } },
    axes: [
      { ...axis, values: (_, ticks, __, ___, step) => ticks.map((tick) => timeOf(tick, step)), space: 70, size: 26 },
      { ...axis, size: 52, values: (_, ticks) => ticks.map((tick) => show(tick)) },
    ],
    series: [{}, ...lines],
  };
}

// Hours and minutes, with seconds where the marks are closer than a minute.
const timeOf = (seconds, step) => new Date(1000 * seconds).toLocaleTimeString("en-GB").slice(0, step < 60 ? 8 : 5);

const lastOf = (values) => values.findLast((value) => value !== null) ?? null;
