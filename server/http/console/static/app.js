// The console: `#/` shows all models, `#/model/NAME/VERSION[/TAB]` one of them.

import { html, render, useEffect, useState } from "./vendor/preact.js";
import { useJson } from "./data.js";
import { watch } from "./live.js";
import { ModelPage } from "./model.js";
import { ModelsPage } from "./models.js";

function routeOf(hash) {
  const [kind, name, version, tab] = hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  return kind === "model" && version ? { name, version, tab: tab || "live" } : {};
}

function App() {
  const [route, setRoute] = useState(routeOf(location.hash));
  const [live, setLive] = useState(null);

  useEffect(() => {
    const follow = () => setRoute(routeOf(location.hash));
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  useEffect(() => {
    setLive((before) => before && { ...before, minutes: null, hours: null });
    return watch(route.name, route.version, setLive);
  }, [route.name, route.version]);
  useEffect(() => {
    document.title = route.name ? `${route.name} ${route.version} · Demi` : "Demi";
  }, [route.name, route.version]);

  return html`
    <a class="skip" href="#main" onClick=${focusMain}>Skip to content</a>
    <${Header} live=${live} />
    <main id="main" tabindex="-1">
      ${route.name ? html`<${ModelPage} key=${route.name} route=${route} live=${live} />` : html`<${ModelsPage} live=${live} />`}
    </main>
  `;
}

function Header({ live }) {
  return html`
    <header class="top">
      <a class="brand" href="#/"><img src="console/assets/icon.svg" alt="" width="20" height="20" /> Demi</a>
      <${Connection} live=${live} />
      <nav aria-label="Server">
        <a href="docs">API</a>
        <a href="metrics">Metrics</a>
        <${SignOut} />
      </nav>
    </header>
  `;
}

function Connection({ live }) {
  const [state, words] = !live
    ? ["waiting", "connecting"]
    : live.stopping
      ? ["lost", "the server is stopping"]
      : live.connected
        ? ["live", "live"]
        : ["lost", "connection lost, trying again"];
  return html`<span class="connection ${state}" role="status">${words}</span>`;
}

function SignOut() {
  const [session] = useJson("console/session"); // its cookie cannot be read here
  if (!session?.signed_in) return null;
  return html`<form method="post" action="console/sign-out"><button class="link">Sign out</button></form>`;
}

function focusMain(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

render(html`<${App} />`, document.getElementById("app"));
