// What every page shares: the header, light and dark, help, notices that pass, and where one is.
import { get, type Info } from "./api";
import { el, fill, key } from "./dom";
import { allBindings, setBindings, setCommon, type Binding } from "./keys";

export interface Page {
  root: HTMLElement;
  /** Takes the whole window, without margins or scrolling. */
  whole?: boolean;
  dispose?: () => void;
}
export type MakePage = (where: Where) => Page;
export interface Where { parts: string[]; query: URLSearchParams }

const RENEW_MS = 15_000;
const PAGES = [
  { name: "run", title: "Run", key: "shift+r", shown: "Shift R" },
  { name: "cases", title: "Cases", key: "shift+c", shown: "Shift C" },
  { name: "review", title: "Review", key: "shift+v", shown: "Shift V" },
  { name: "report", title: "Report", key: "shift+p", shown: "Shift P" },
] as const;
export type PageName = (typeof PAGES)[number]["name"];

export let info: Info;
const body = el("main", { id: "page", tabindex: "-1" });
const passing = el("div", { class: "toasts", role: "status", "aria-live": "polite" });
const help = el("dialog", { class: "help", "aria-label": "Keys" });
let current: Page | null = null;
let links: HTMLAnchorElement[] = [];

/** Where a case was opened from: the list as it was sorted, or the review. */
export let origin = "cases";

/** Shows the pages that there are: a report may come while one looks. */
export function offer(): void {
  for (const link of links) link.hidden = !info.pages[link.dataset.page as PageName];
}

/** A run that goes on has organs, doubts and labels that it had not when the page was opened. */
async function renew(): Promise<void> {
  try {
    info = await get<Info>("/api/info");
    offer();
  } catch {
    // who needs the server says so
  }
}

export function start(given: Info, makers: Record<PageName, MakePage>): void {
  info = given;
  document.title = `${info.name} · semiseg`;
  links = PAGES.map((page) => el("a", { href: `#/${page.name}`, "data-page": page.name, title: `${page.title} (${page.shown})` }, page.title));
  offer();
  const header = el(
    "header",
    { class: "shell" },
    el("a", { class: "name", href: `#/${home()}`, title: info.name }, el("b", {}, "semiseg"), el("span", {}, info.name)),
    el("nav", { "aria-label": "Pages" }, ...links),
    el("span", { class: "grow" }),
    info.reviewer ? el("span", { class: "who", title: "Decisions are noted under this name" }, info.reviewer) : null,
    el("button", { class: "plain", title: "Light or dark (Shift D)", "aria-label": "Light or dark", onclick: switchTheme }, "◐"),
    el("button", { class: "plain", title: "Keys (?)", "aria-label": "Keys", onclick: showHelp }, "?"),
  );
  document.body.replaceChildren(header, body, passing, help);
  help.addEventListener("click", (event) => event.target === help && help.close());
  setCommon([
    ...PAGES.map((page): Binding => ({
      keys: [page.key], shown: page.shown, says: `Page “${page.title}”`, press: () => info.pages[page.name] && go(page.name),
    })),
    { keys: ["shift+d"], shown: "Shift D", says: "Light or dark", press: switchTheme },
    { keys: ["?", "shift+?"], shown: "?", says: "These keys", press: () => (help.open ? help.close() : showHelp()) },
  ]);
  const route = () => {
    const [path = "", search = ""] = location.hash.replace(/^#\/?/, "").split("?");
    const parts = path.split("/").map(decode);
    const name = parts[0] ? PAGES.find((page) => page.name === parts[0])?.name : home();
    current?.dispose?.();
    setBindings([]);
    if (name && (name !== "cases" || !parts[1])) origin = location.hash.replace(/^#\/?/, "") || name;
    for (const link of links) {
      if (link.dataset.page === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    current = name ? makers[name]({ parts: parts.slice(1), query: new URLSearchParams(search) }) : noPage();
    document.body.classList.toggle("whole", current.whole === true);
    fill(body, current.root);
    body.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  };
  window.addEventListener("hashchange", route);
  window.addEventListener("hashchange", () => void renew());
  setInterval(() => document.hidden || void renew(), RENEW_MS);
  route();
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** What is shown where the address is of no page. */
function noPage(): Page {
  const first = PAGES.find((page) => page.name === home())!;
  const link = el("a", { href: `#/${first.name}` }, first.title);
  return { root: el("p", { class: "empty" }, "There is no page at this address: ", el("code", {}, location.hash), ". The first page is ", link, ".") };
}

function home(): PageName {
  return info.kind === "run" && info.pages.run ? "run" : "cases";
}

export function go(path: string): void {
  location.hash = `#/${path}`;
}

/** Changes the address without leaving the page. */
export function note(path: string): void {
  origin = path;
  history.replaceState(null, "", `#/${path}`);
}

export const hashOfCase = (id: string): string => `cases/${encodeURIComponent(id)}`;

export function toast(text: string, kind: "plain" | "bad" = "plain"): void {
  if (kind === "bad" && [...passing.children].some((one) => one.textContent === text)) return; // it is said
  const shown = el("div", { class: `toast ${kind}` }, text);
  passing.append(shown);
  setTimeout(() => shown.remove(), kind === "bad" ? 8000 : 3000);
}

export function complain(error: unknown): void {
  if (error instanceof DOMException && error.name === "AbortError") return;
  toast(error instanceof Error ? error.message : String(error), "bad");
}

function showHelp(): void {
  const table = (title: string, all: Binding[]) => {
    const rows = all.filter((row) => row.shown !== "");
    const shown = (row: Binding) =>
      el("div", { class: "binding" },
        el("span", {}, ...(row.shown ?? row.keys[0]!).split(" ").map((part) => (part === "or" || part === "…" ? ` ${part} ` : key(part)))),
        el("span", {}, row.says));
    return rows.length ? [el("h3", {}, title), el("div", { class: rows.length > 12 ? "bindings many" : "bindings" }, ...rows.map(shown))] : [];
  };
  const { page, common } = allBindings();
  fill(
    help,
    el("h2", {}, "Keys"),
    el("div", { class: "columns" }, el("div", {}, ...table("On this page", page)), el("div", {}, ...table("Everywhere", common))),
    el("form", { method: "dialog" }, el("button", { class: "button", autofocus: true }, "Close")),
  );
  help.showModal();
}

const THEME = "semiseg-theme";

export function applyTheme(): void {
  const chosen = localStorage.getItem(THEME);
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}

export function isDark(): boolean {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function switchTheme(): void {
  const wanted = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = wanted;
  localStorage.setItem(THEME, wanted);
  window.dispatchEvent(new Event("themechange"));
}
