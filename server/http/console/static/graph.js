// The graph, laid out by dagre and drawn as SVG: the whole of a small model, the surroundings of a node of a large one.

import dagre from "./vendor/dagre.js";
import { html, useEffect, useMemo, useRef, useState } from "./vendor/preact.js";
import { count } from "./format.js";

const WHOLE = 120; // nodes of a model that is drawn as a whole
const AROUND = 24; // nodes of a larger model: those that run before and after the chosen one

export function Graph({ nodes, chosen, onChoose }) {
  const drawing = useMemo(() => layOut(nodes, nodes.length > WHOLE ? (chosen ?? 0) : null), [nodes, nodes.length > WHOLE && chosen]);
  const [view, setView] = useState(null);
  const drag = useRef(null);
  const svg = useRef(null);
  useEffect(() => setView(fit(drawing, svg.current)), [drawing]);
  useEffect(() => {
    const at = chosen === null ? null : drawing.nodes.find((node) => node.index === chosen);
    if (at) setView((before) => before && { ...before, x: at.x - before.width / 2, y: at.y - before.height / 2 });
  }, [chosen]);
  useEffect(() => {
    const zoom = (event) => {
      event.preventDefault();
      setView((before) => before && zoomed(before, event.deltaY > 0 ? 1.15 : 1 / 1.15));
    };
    svg.current.addEventListener("wheel", zoom, { passive: false });
    return () => svg.current?.removeEventListener("wheel", zoom);
  }, []);

  const move = (event) => {
    if (!drag.current || !view) return;
    const scale = view.width / svg.current.clientWidth;
    setView({ ...view, x: drag.current.x - event.clientX * scale, y: drag.current.y - event.clientY * scale });
  };
  const grab = (event) => {
    if (!view) return;
    const scale = view.width / svg.current.clientWidth;
    drag.current = { x: view.x + event.clientX * scale, y: view.y + event.clientY * scale };
  };
  const box = view ? `${view.x} ${view.y} ${view.width} ${view.height}` : "0 0 1 1";
  return html`
    <div class="bar">
      <div class="segmented" role="group" aria-label="Zoom">
        <button aria-label="Zoom in" onClick=${() => setView(zoomed(view, 1 / 1.4))}>+</button>
        <button aria-label="Zoom out" onClick=${() => setView(zoomed(view, 1.4))}>−</button>
        <button onClick=${() => setView(fit(drawing, svg.current))}>Fit</button>
      </div>
      <span class="quiet">${drawing.nodes.length < nodes.length ? `${count(drawing.nodes.length)} of ${count(nodes.length)} nodes in the order of execution: choose one in the table to see others` : "choose a node to find it in the table"}</span>
    </div>
    <svg class="graph" ref=${svg} viewBox=${box} role="group" aria-label=${`Graph of ${drawing.nodes.length} nodes`}
      onPointerDown=${grab} onPointerMove=${move} onPointerUp=${() => (drag.current = null)} onPointerLeave=${() => (drag.current = null)}>
      <defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" /></marker></defs>
      ${drawing.edges.map((edge) => html`<path d=${edge} marker-end="url(#arrow)" />`)}
      ${drawing.nodes.map((node) => html`<${Node} node=${node} isChosen=${node.index === chosen} onChoose=${onChoose} />`)}
    </svg>
  `;
}

function Node({ node, isChosen, onChoose }) {
  const kind = node.reason.startsWith("cast") ? "cast" : node.precision;
  const words = `${node.node}, ${node.op_type}, ${kind === "fp32" ? "FP32" : kind || "no floats"}${node.reason ? `: ${node.reason}` : ""}`;
  const choose = () => onChoose(node.index);
  const press = (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), choose());
  return html`
    <g class=${`node ${kind}${isChosen ? " chosen" : ""}`} transform=${`translate(${node.x - node.width / 2} ${node.y - node.height / 2})`}
      tabindex="0" role="button" aria-pressed=${isChosen ? "true" : "false"} aria-label=${words} onClick=${choose} onKeyDown=${press}>
      <title>${words}</title>
      <rect width=${node.width} height=${node.height} rx="6" />
      <text x=${node.width / 2} y="16">${node.op_type}</text>
      <text class="name" x=${node.width / 2} y="30">${short(node.node)}</text>
    </g>
  `;
}

const short = (name) => (name.length > 24 ? `…${name.slice(-23)}` : name);

const LINE = { width: 30 };

function layOut(nodes, around) {
  const kept = around === null ? new Set(nodes.map((node) => node.index)) : near(nodes, around);
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "TB", nodesep: 18, ranksep: 34, marginx: 12, marginy: 12 });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const index of kept) {
    const node = nodes[index];
    const letters = Math.max(node.op_type.length * 7.6, short(node.node).length * 6.2);
    graph.setNode(String(index), { width: LINE.width + letters, height: 38 });
  }
  for (const index of kept) for (const from of nodes[index].reads) if (kept.has(from)) graph.setEdge(String(from), String(index));
  if (kept.size) dagre.layout(graph);
  const placed = [...kept].map((index) => ({ ...nodes[index], ...graph.node(String(index)) }));
  const edges = graph.edges().map((edge) => `M${graph.edge(edge).points.map(({ x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`);
  return { nodes: placed, edges, width: graph.graph().width || 1, height: graph.graph().height || 1 };
}

// The nodes that run just before and after one.
function near(nodes, around) {
  const first = Math.max(0, Math.min(around - AROUND / 2, nodes.length - AROUND));
  return new Set(nodes.slice(first, first + AROUND).map((node) => node.index));
}

// A view that shows the whole drawing, or its top if it would be too small to read.
function fit(drawing, element) {
  const shape = element ? element.clientWidth / element.clientHeight : 1.4;
  const width = Math.min(Math.max(drawing.width, drawing.height * shape, 320), 760);
  const height = width / shape;
  return { x: (drawing.width - width) / 2, y: drawing.height < height ? (drawing.height - height) / 2 : 0, width, height };
}

function zoomed(view, factor) {
  if (!view) return view;
  const width = view.width * factor;
  const height = view.height * factor;
  return { x: view.x + (view.width - width) / 2, y: view.y + (view.height - height) / 2, width, height };
}
