import { get, type Info } from "./api";
import { casePage } from "./case";
import { casesPage } from "./cases";
import { el, fill } from "./dom";
import { listen } from "./keys";
import { reportPage } from "./report";
import { reviewPage } from "./review";
import { runPage } from "./run";
import { applyTheme, start } from "./shell";

applyTheme();
listen();
try {
  const info = await get<Info>("/api/info");
  start(info, {
    run: runPage,
    cases: (where) => (where.parts[0] ? casePage(where) : casesPage(where)),
    review: reviewPage,
    report: reportPage,
  });
} catch (error) {
  fill(document.body, el("main", { class: "broken" }, el("h1", {}, "These pages could not begin"), el("p", {}, String(error instanceof Error ? error.message : error))));
}
