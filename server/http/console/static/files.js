// The editor of images and sounds: files that are dropped on it or chosen, each one row of the request.

import { html, useState } from "./vendor/preact.js";

const KINDS = {
  image: { words: "images", accept: "image/*", Preview: ({ file }) => html`<img src=${file.url} alt=${file.name} />` },
  audio: { words: "sounds", accept: "audio/*", Preview: ({ file }) => html`<audio controls src=${file.url} aria-label=${file.name}></audio>` },
};

export function Files({ input, onEdit }) {
  const { words, accept, Preview } = KINDS[input.editor];
  const [files, setFiles] = useState([]);
  const [isOver, setOver] = useState(false);
  const take = async (list) => {
    const taken = await Promise.all([...list].map(opened));
    setFiles(taken);
    onEdit(taken);
  };
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    take(event.dataTransfer.files);
  };
  const over = (event) => {
    event.preventDefault(); // or the browser would open the file
    setOver(true);
  };
  return html`
    <label class="drop ${isOver ? "over" : ""}" onDragOver=${over} onDragLeave=${() => setOver(false)} onDrop=${drop}>
      <span>Drop ${words} here, or choose them</span>
      <input type="file" multiple accept=${accept} aria-label=${input.name} onChange=${(event) => take(event.target.files)} />
    </label>
    <ul class="files">${files.map((file) => html`<li key=${file.url}><${Preview} file=${file} /><span>${file.name}</span></li>`)}</ul>
  `;
}

// The contents in base64, as JSON carries files.
export function readFiles(input, files) {
  if (files.length === 0) throw new Error(`${input.name}: choose a file first`);
  return { shape: [files.length], data: files.map((file) => file.url.slice(file.url.indexOf(",") + 1)) };
}

// Returns a file as a data URL, which the page's policy lets an image and a sound show.
function opened(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ name: file.name, url: reader.result });
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
