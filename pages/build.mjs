// Bundles the pages into the folder that `semiseg view` serves: node build.mjs [FOLDER].
import { build } from "esbuild";
import { cp, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

const here = path.dirname(fileURLToPath(import.meta.url));
const target = path.resolve(process.argv[2] ?? path.join(here, "../src/semiseg/view/static"));

// NiiVue reads OME-Zarr too, with decoders of 1.4 MB. Nothing here is Zarr.
const withoutZarr = {
  name: "without-zarr",
  setup(build) {
    build.onResolve({ filter: /^numcodecs\// }, ({ path }) => ({ path, namespace: "left-out" }));
    build.onLoad({ filter: /.*/, namespace: "left-out" }, () => ({ contents: "export default null;" }));
  },
};

await rm(target, { recursive: true, force: true });
await mkdir(target, { recursive: true });
const result = await build({
  absWorkingDir: here,
  entryPoints: { main: "src/main.ts", style: "src/style.css" },
  outdir: target,
  bundle: true,
  splitting: true, // NiiVue is 2 MB and is loaded when 3D is asked for
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none", // licences.txt has them whole
  metafile: true,
  logLevel: "warning",
  plugins: [withoutZarr],
});
await cp(path.join(here, "src/index.html"), path.join(target, "index.html"));
await writeFile(path.join(target, "licences.txt"), await licences(Object.keys(result.metafile.inputs)));

/** The licences of every package of which the bundle holds a file. */
async function licences(inputs) {
  const names = new Set();
  for (const input of inputs) {
    const found = /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
    if (found) names.add(found[1]);
  }
  const texts = [];
  // NiiVue's build holds its dependencies already.
  const bundled = JSON.parse(await readFile(path.join(here, "node_modules/@niivue/niivue/package.json"), "utf8"));
  for (const name of Object.keys(bundled.dependencies)) names.add(name);
  for (const name of [...names].sort()) {
    const folder = path.join(here, "node_modules", name);
    const { version, license } = JSON.parse(await readFile(path.join(folder, "package.json"), "utf8"));
    const file = (await readdir(folder)).find((entry) => /^licen[cs]e/i.test(entry));
    const text = file ? await readFile(path.join(folder, file), "utf8") : "(The package holds no text of it.)";
    texts.push(`${name} ${version}: ${license}\n\n${text.trim()}\n`);
  }
  return texts.join(`\n${"-".repeat(80)}\n\n`);
}
