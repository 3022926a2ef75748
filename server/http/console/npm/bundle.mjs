// Bundles the console's libraries into ../static/vendor, each as one ES module beside its licence:
//
//     npm ci && npm run bundle
//
// The result is committed, so that neither users nor tests need npm. `vendor/versions.json` records the versions, and a test
// compares them with package-lock.json.

import { build } from "esbuild";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";

const VENDOR = "../static/vendor";

const MODULES = {
  "preact.js": `export { h, render, Fragment } from "preact";
    export { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
    import { h } from "preact"; import htm from "htm"; export const html = htm.bind(h);`,
  "uplot.js": `export { default } from "uplot";`,
  "dagre.js": `export { default } from "@dagrejs/dagre";`,
};

const { dependencies } = JSON.parse(readFileSync("package.json", "utf8"));

rmSync(VENDOR, { recursive: true, force: true });
mkdirSync(VENDOR, { recursive: true });
for (const [name, contents] of Object.entries(MODULES)) {
  await build({
    stdin: { contents, resolveDir: "." },
    outfile: `${VENDOR}/${name}`,
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2020",
    legalComments: "none", // the licences are beside the modules
  });
}
copyFileSync("node_modules/uplot/dist/uPlot.min.css", `${VENDOR}/uplot.css`);

const versions = {};
for (const name of Object.keys(dependencies)) {
  const folder = `node_modules/${name}`;
  versions[name] = JSON.parse(readFileSync(`${folder}/package.json`, "utf8")).version;
  const licence = readdirSync(folder).find((file) => /^licen[cs]e/i.test(file));
  copyFileSync(`${folder}/${licence}`, `${VENDOR}/LICENSE-${name.replace(/^.*\//, "")}.txt`);
}
writeFileSync(`${VENDOR}/versions.json`, JSON.stringify(versions, null, 2) + "\n");
