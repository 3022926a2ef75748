// The stream of events: cards of all models, and the points of the model that the page shows.

// Calls `onChange(state)` after each event; returns a function that closes the stream.
export function watch(name, version, onChange) {
  const query = name ? `?${new URLSearchParams({ model: name, version })}` : "";
  const state = { cards: new Map(), minutes: null, hours: null, connected: false, stopping: false };
  const changed = () => onChange({ ...state });
  const source = new EventSource(`console/events${query}`);

  source.addEventListener("open", () => {
    Object.assign(state, { cards: new Map(), minutes: null, hours: null }); // every stream begins with everything
  });
  source.addEventListener("models", (event) => {
    const changes = JSON.parse(event.data);
    for (const card of changes.cards) state.cards.set(keyOf(card.name, card.version), card);
    for (const [gone, old] of changes.gone) state.cards.delete(keyOf(gone, old));
    state.cards = new Map(state.cards);
    state.connected = true;
    state.stopping = false;
    changed();
  });
  source.addEventListener("points", (event) => {
    const points = JSON.parse(event.data);
    state[points.span] = joined(state[points.span], points);
    changed();
  });
  source.addEventListener("stopping", () => {
    state.stopping = true;
    changed();
  });
  source.addEventListener("error", () => {
    state.connected = false;
    changed();
    if (source.readyState === EventSource.CLOSED) checkKey();
  });
  return () => source.close();
}

export const keyOf = (name, version) => `${name}/${version}`;

async function checkKey() {
  const answer = await fetch("console/models").catch(() => null);
  if (answer?.status === 401) location.reload();
  else setTimeout(() => location.reload(), 10_000); // a refused stream is not retried by the browser
}

const MOST = { minutes: 450, hours: 360 };

function joined(before, points) {
  if (before === null) return points;
  const most = MOST[points.span];
  const append = (old = [], more = []) => [...old, ...more].slice(-most);
  const columns = (old, more) =>
    Object.fromEntries(Object.keys(more).map((name) => [name, append(old[name], more[name])]));
  return {
    span: points.span,
    times: append(before.times, points.times),
    columns: columns(before.columns, points.columns),
    errors: columns(before.errors, points.errors),
  };
}
