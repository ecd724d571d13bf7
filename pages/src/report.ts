// The static report as it is, within the pages' header.
import { el } from "./dom";
import { setBindings } from "./keys";
import { info, isDark, type Page } from "./shell";

export function reportPage(): Page {
  setBindings([{ keys: ["enter"], shown: "Enter", says: "The report on a page of its own", press: () => void window.open("/report", "_blank", "noopener") }]);
  if (!info.pages.report) {
    return { root: el("p", { class: "empty" }, "There is no report yet. It is written when the run is done; `semiseg report RUN` writes it at any time.") };
  }
  const root = el("iframe", { class: "report", src: "/report", title: "Report" });
  const follow = () => void (root.style.colorScheme = isDark() ? "dark" : "light");
  window.addEventListener("themechange", follow);
  follow();
  return { whole: true, root, dispose: () => window.removeEventListener("themechange", follow) };
}
