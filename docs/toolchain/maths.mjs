// Renders the LaTeX of all pages with KaTeX: node maths.mjs NODE_MODULES SITE
//
// Pages then need no script for it, and LaTeX that KaTeX cannot read fails the build.

import { createRequire } from "node:module";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

const [modules, site] = process.argv.slice(2);
const katex = createRequire(resolve(modules) + "/")("katex");
const entities = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'" };
const formulas =
  /<(span|div) class="arithmatex">(?:\\\(|\\\[)([\s\S]*?)(?:\\\)|\\\])<\/\1>/g;
const errors = [];

function pages(directory) {
  return readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
    const path = join(directory, entry.name);
    return entry.isDirectory() ? pages(path) : path.endsWith(".html") ? [path] : [];
  });
}

function rendered(page, tag, escaped) {
  const latex = escaped.replace(/&(amp|lt|gt|quot|#39);/g, (name) => entities[name]);
  try {
    const options = { displayMode: tag === "div", throwOnError: true, strict: "error" };
    const html = katex.renderToString(latex, options);
    return `<${tag} class="maths">${html}</${tag}>`;
  } catch (error) {
    errors.push(`${page}: ${error.message}`);
    return "";
  }
}

for (const page of pages(site)) {
  const html = readFileSync(page, "utf8");
  const changed = html.replace(formulas, (_, tag, latex) => rendered(page, tag, latex));
  if (changed !== html) writeFileSync(page, changed);
}
// Excerpts of the search show text: formulas without what makes LaTeX of them. Both
// files hold JSON, in which a backslash is two.
for (const name of ["search.json", "search.js"]) {
  const text = readFileSync(join(site, name), "utf8");
  const plain = text.replace(/\\\\[([](.*?)\\\\[)\]]/g, (_, latex) =>
    latex
      .replace(/\\\\(mathrm|mathcal|mathbb|text|operatorname|tfrac|frac|[,;!|])/g, " ")
      .replace(/\\\\(?=[A-Za-z])/g, "")
      .replace(/[{}]/g, ""),
  );
  writeFileSync(join(site, name), plain);
}
if (errors.length) {
  console.error(errors.join("\n"));
  process.exit(1);
}
