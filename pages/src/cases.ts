// All cases: a grid of thumbnails or a list, sorted and filtered. The address holds the choice, so that Back returns to it.
import { get, post, query, type CaseList, type CaseRow } from "./api";
import { count, el, fill, fixed, key, swatch, volume, words } from "./dom";
import { setBindings } from "./keys";
import { complain, go, hashOfCase, info, note, toast, type Page, type Where } from "./shell";
import { thumbnail } from "./thumbs";
import { badge } from "./verdicts";

const PIECE = 60;
const RETRY_MS = 5000;
const SORTS = { id: "name", score: "score", doubt: "doubt", volume: "volume", fragments: "fragments", decision: "decision" } as const;
const FILTERS: Record<string, string> = {
  "": "all cases",
  missing: "an organ is missing",
  outlier: "unusual volume",
  fragments: "more pieces than usual",
  undecided: "not decided",
  accept: "accepted",
  set_aside: "set aside",
  label: "to be labelled",
  unsure: "unsure",
  stale: "label changed since",
};

/** The list that a case was opened from, or of all cases, so that the case's page can go to the next one. */
export let list: { query: string; ids: string[]; asked: Promise<void> | null } = { query: "", ids: [], asked: null };

/** Has all ids of the list. They stay as they were when a case was opened: a decision may take its case out of the list,
 * and the next one would be skipped. */
export function listed(): Promise<void> {
  const of = list;
  of.asked ??= get<{ ids: string[] }>(`/api/cases?${of.query}&ids=1`).then(
    (found) => void (of.ids = found.ids),
    (error: unknown) => {
      of.asked = null;
      throw error;
    },
  );
  return of.asked;
}

const chosen = new Set<string>();
let opened = "";

export function casesPage(where: Where): Page {
  const given = (name: string, usual = "") => where.query.get(name) ?? usual;
  const wanted = {
    sort: given("sort", "id"), descending: given("descending"), organ: given("organ"), filter: given("filter"),
    role: given("role"), search: given("search"), as: given("as", localStorage.getItem("semiseg-cases-as") ?? "grid"),
  };
  let stopped = false;
  let turn = 0;
  let offset = 0;
  let total = 0;
  let timer = 0;
  const rows = new Map<string, CaseRow>();
  const search = el("input", { type: "search", placeholder: "Search ids", "aria-label": "Search ids", value: wanted.search });
  const select = (label: string, choices: Record<string, string>, name: "organ" | "sort" | "filter" | "role") => {
    const made = el("select", { "aria-label": label }, ...Object.entries(choices).map(([value, text]) => el("option", { value }, text)));
    made.value = wanted[name];
    if (made.selectedIndex < 0) made.selectedIndex = 0;
    made.addEventListener("change", () => {
      wanted[name] = made.value;
      reload();
      made.blur();
    });
    return made;
  };
  const organ = select("Organ", { "": "all organs", ...Object.fromEntries(info.organs.map((one) => [one.name, words(one.name)])) }, "organ");
  const filter = select("Filter", FILTERS, "filter");
  const role = select("Role", { "": "all roles", ...Object.fromEntries(info.roles.map((one) => [one, words(one)])) }, "role");
  const sort = select("Sort by", Object.fromEntries(Object.entries(SORTS).map(([value, text]) => [value, `by ${text}`])), "sort");
  const direction = el("button", { class: "button", onclick: () => turnAround() });
  const layout = el("button", { class: "button", title: "Grid or list (T)", onclick: () => changeLayout() });
  const status = el("span", { class: "status", "aria-live": "polite" });
  const exporting = el("button", { class: "button", onclick: () => void exportChosen() });
  const body = el("div", {});
  const more = el("div", { class: "more" });
  const root = el(
    "div",
    { class: "cases" },
    el("div", { class: "toolbar" }, search, organ, filter, info.roles.length > 1 ? role : null, sort, direction, layout, status, el("span", { class: "grow" }), exporting),
    body,
    more,
  );

  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = window.setTimeout(() => {
      wanted.search = search.value;
      reload();
    }, 200);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "ArrowDown") {
      event.preventDefault();
      cards()[0]?.focus();
    }
  });

  function address(): string {
    return query({ sort: wanted.sort, descending: wanted.descending === "1", organ: wanted.organ, filter: wanted.filter, role: wanted.role, search: wanted.search });
  }

  function reload(): void {
    note(`cases?${address()}`);
    turn++;
    offset = 0;
    total = Number.POSITIVE_INFINITY;
    rows.clear();
    const place = list.query === address() ? list.ids.indexOf(opened) : -1;
    back = place < 0 ? PIECE : PIECE * Math.ceil((place + 1) / PIECE);
    list = { query: address(), ids: [], asked: null };
    direction.textContent = wanted.descending === "1" ? "↓" : "↑";
    direction.title = `${wanted.descending === "1" ? "Largest" : "Smallest"} first (D)`;
    layout.textContent = wanted.as === "grid" ? "List" : "Grid";
    clearTimeout(poller);
    void next(true);
  }

  let loading = false;
  let back = PIECE;
  async function next(first = false): Promise<void> {
    if ((loading && !first) || stopped || offset >= total) return;
    loading = true;
    const mine = turn;
    try {
      const found = await get<CaseList>(`/api/cases?${address()}&offset=${offset}&limit=${first ? back : PIECE}`);
      if (mine !== turn || stopped) return;
      if (first) fill(body, container());
      total = found.rows.length ? found.total : offset;
      offset += found.rows.length;
      for (const row of found.rows) rows.set(row.id, row);
      body.querySelector(".items")?.append(...found.rows.map(wanted.as === "grid" ? card : line));
      tell(found);
      if (first && rows.has(opened)) {
        const card = body.querySelector<HTMLElement>(`[data-number="${numberOf(opened)}"]`);
        card?.focus({ preventScroll: true });
        card?.scrollIntoView({ block: "center" });
      }
    } catch (error) {
      if (mine !== turn || stopped) return;
      complain(error);
      clearTimeout(poller);
      poller = window.setTimeout(() => void next(first), RETRY_MS);
      return;
    } finally {
      if (mine === turn) loading = false;
    }
    if (mine === turn && watching.takeRecords().length === 0 && more.getBoundingClientRect().top < innerHeight + 600) void next();
  }

  let poller = 0;
  function tell(found: CaseList): void {
    const measuring = found.measured < 1 ? ` · measuring labels, ${Math.floor(100 * found.measured)} %` : "";
    status.textContent = `${count(found.total)} case${found.total === 1 ? "" : "s"}${measuring}`;
    if (!found.total) fill(body, el("p", { class: "empty" }, "No case fits this choice."));
    if (found.measured < 1 && !stopped) {
      clearTimeout(poller);
      poller = window.setTimeout(refresh, 2000);
    }
    tellChosen();
  }

  /** The rows that are shown, with what has been measured since. */
  async function refresh(): Promise<void> {
    const mine = turn;
    try {
      const found = await get<CaseList>(`/api/cases?${address()}&offset=0&limit=${Math.max(offset, PIECE)}`);
      if (mine !== turn || stopped) return;
      for (const row of found.rows) {
        const shown = body.querySelector(`[data-number="${numberOf(row.id)}"]`);
        if (!shown) continue;
        rows.set(row.id, row);
        shown.querySelector(".facts-line")?.replaceWith(factsLine(row));
        if (wanted.as === "list") {
          const fresh = line(row);
          const focused = document.activeElement === shown;
          shown.replaceWith(fresh);
          if (focused) fresh.focus();
        }
      }
      tell(found);
    } catch (error) {
      if (mine !== turn || stopped) return;
      complain(error);
      poller = window.setTimeout(refresh, RETRY_MS);
    }
  }

  const numbers = new Map<string, number>();
  const numberOf = (id: string): number => {
    if (!numbers.has(id)) numbers.set(id, numbers.size);
    return numbers.get(id)!;
  };

  function container(): HTMLElement {
    if (wanted.as === "grid") return el("div", { class: "grid items" });
    const header = (name: keyof typeof SORTS | "", text: string, kind = "") =>
      el("th", { class: kind, "aria-sort": name === wanted.sort ? (wanted.descending === "1" ? "descending" : "ascending") : undefined },
        name ? el("button", { class: "plain", onclick: () => sortBy(name) }, text, name === wanted.sort ? (wanted.descending === "1" ? " ↓" : " ↑") : "") : text);
    return el(
      "table",
      { class: "list" },
      el("thead", {}, el("tr", {}, header("", ""), header("id", "Case"), header("", "Role"), header("score", "Dice", "number"), header("doubt", "Doubt", "number"),
        header("volume", "Volume", "number"), header("fragments", "Pieces", "number"), header("", "Remarks"), header("decision", "Decision"))),
      el("tbody", { class: "items" }),
    );
  }

  function sortBy(name: keyof typeof SORTS): void {
    if (wanted.sort === name) wanted.descending = wanted.descending === "1" ? "" : "1";
    else [wanted.sort, wanted.descending] = [name, name === "doubt" ? "1" : ""];
    sort.value = name;
    reload();
  }

  function remarks(row: CaseRow): (Node | string)[] {
    const tags: [string[], string, string][] = [[row.missing, "no", "bad"], [row.outliers, "unusual volume:", "odd"], [row.torn, "in pieces:", "odd"]];
    const misfit = row.misfit ? [el("span", { class: "tag bad", title: row.misfit }, "not on its scan")] : [];
    const odd = tags.flatMap(([organs, text, kind]) => {
      if (!organs.length) return [];
      const names = organs.slice(0, 2).map(words).join(", ") + (organs.length > 2 ? ` and ${organs.length - 2} more` : "");
      return [el("span", { class: `tag ${kind}`, title: organs.map(words).join(", ") }, `${text} ${names}`)];
    });
    return [...misfit, ...odd];
  }

  function factsLine(row: CaseRow): HTMLElement {
    const parts: [string, string][] = [];
    if (row.score !== null) parts.push(["Dice", fixed(row.score, 3)]);
    if (row.doubt !== null) parts.push(["doubt", fixed(row.doubt, 3)]);
    if (row.volume_ml !== null) parts.push(["", volume(row.volume_ml)]);
    if (row.fragments !== null && row.fragments > 0) parts.push(["", `${row.fragments} piece${row.fragments === 1 ? "" : "s"}`]);
    return el("div", { class: "facts-line" }, ...parts.map(([name, value]) => el("span", {}, name ? `${name} ` : "", el("b", {}, value))), ...remarks(row));
  }

  function open(id: string): void {
    opened = id;
    note(`cases?${address()}`);
    go(hashOfCase(id));
  }

  function box(row: CaseRow): HTMLInputElement {
    return el("input", {
      type: "checkbox", checked: chosen.has(row.id), title: "Choose for export (X)", "aria-label": `Choose ${row.id}`, tabindex: "-1",
      onclick: (event: Event) => event.stopPropagation(),
      onchange: (event: Event) => choose(row.id, (event.target as HTMLInputElement).checked),
    });
  }

  function card(row: CaseRow): HTMLElement {
    return el(
      "a",
      { class: "case-card", href: `#/${hashOfCase(row.id)}`, onclick: () => void (opened = row.id), "data-number": numberOf(row.id), "data-id": row.id },
      el("div", { class: "thumb" }, thumbnail(row.id, 192), badge(row.decision, row.stale), info.corrections && box(row)),
      el("div", { class: "id", title: row.id }, row.id),
      el("div", { class: "role" }, words(row.role), row.corrected ? " · corrected" : ""),
      factsLine(row),
    );
  }

  function line(row: CaseRow): HTMLElement {
    return el(
      "tr",
      { tabindex: "0", "data-number": numberOf(row.id), "data-id": row.id, onclick: () => open(row.id) },
      el("td", { class: "choose" }, info.corrections && box(row)),
      el("td", { class: "id" }, el("span", {}, thumbnail(row.id, 40), row.id)),
      el("td", {}, words(row.role), row.corrected ? " · corrected" : ""),
      el("td", { class: "number" }, fixed(row.score, 3)),
      el("td", { class: "number" }, fixed(row.doubt, 3)),
      el("td", { class: "number" }, volume(row.volume_ml)),
      el("td", { class: "number" }, fixed(row.fragments, 0)),
      el("td", { class: "remarks" }, ...remarks(row)),
      el("td", {}, badge(row.decision, row.stale)),
    );
  }

  const cards = (): HTMLElement[] => [...body.querySelectorAll<HTMLElement>("[data-number]")];

  function step(by: number | "row" | "-row"): void {
    const all = cards();
    const at = all.indexOf(document.activeElement as HTMLElement);
    let to = 0;
    if (at >= 0) {
      let width = 1;
      if (wanted.as === "grid") {
        const top = all[0]!.offsetTop;
        width = all.findIndex((one) => one.offsetTop !== top);
        if (width < 1) width = all.length;
      }
      to = at + (by === "row" ? width : by === "-row" ? -width : by);
    }
    const found = all[Math.min(Math.max(to, 0), all.length - 1)];
    found?.focus();
    found?.scrollIntoView({ block: "nearest" });
    if (to >= all.length - 12) void next();
  }

  function choose(id: string, on: boolean): void {
    if (on) chosen.add(id);
    else chosen.delete(id);
    tellChosen();
  }

  function tellChosen(): void {
    exporting.hidden = chosen.size === 0;
    fill(exporting, `Export ${chosen.size} `, key("E"));
    exporting.title = "For correction by ITK-SNAP or 3D Slicer";
  }

  async function exportChosen(): Promise<void> {
    if (!chosen.size) return toast("Choose cases with X first.");
    try {
      const { folder } = await post<{ folder: string }>("/api/export", { cases: [...chosen] });
      showFolder(folder, chosen.size);
      chosen.clear();
      for (const one of body.querySelectorAll<HTMLInputElement>("input[type=checkbox]")) one.checked = false;
      tellChosen();
    } catch (error) {
      complain(error);
    }
  }

  function cycle(made: HTMLSelectElement, by = 1): void {
    made.selectedIndex = (made.selectedIndex + by + made.options.length) % made.options.length;
    made.dispatchEvent(new Event("change"));
  }

  const turnAround = () => {
    wanted.descending = wanted.descending === "1" ? "" : "1";
    reload();
  };
  const changeLayout = () => {
    wanted.as = wanted.as === "grid" ? "list" : "grid";
    localStorage.setItem("semiseg-cases-as", wanted.as);
    reload();
  };
  setBindings([
    { keys: ["arrowright"], shown: "← … →", says: "Next case, and back", press: () => step(1) },
    { keys: ["arrowleft"], shown: "←", says: "Case before", press: () => step(-1) },
    { keys: ["arrowdown"], shown: "↓", says: "A row down", press: () => step("row") },
    { keys: ["arrowup"], shown: "↑", says: "A row up", press: () => step("-row") },
    { keys: ["enter"], shown: "Enter", says: "Open", press: () => openFocused() },
    { keys: ["/"], says: "Search", press: () => search.select() },
    { keys: ["f"], shown: "F", says: "Next filter", press: () => cycle(filter) },
    { keys: ["shift+f"], shown: "Shift F", says: "Filter before", press: () => cycle(filter, -1) },
    { keys: ["o"], shown: "O", says: "Next organ", press: () => cycle(organ) },
    { keys: ["r"], shown: "R", says: "Next role", press: () => cycle(role) },
    { keys: ["s"], shown: "S", says: "Sort by the next thing", press: () => cycle(sort) },
    { keys: ["d"], shown: "D", says: "Largest or smallest first", press: turnAround },
    { keys: ["t"], shown: "T", says: "Grid or list", press: changeLayout },
    ...(info.corrections ? [
      { keys: ["x"], shown: "X", says: "Choose for export", press: chooseFocused },
      { keys: ["e"], shown: "E", says: "Export the chosen for correction", press: () => void exportChosen() },
    ] : []),
  ]);

  function openFocused(): void {
    // The first one shown: while the list is fetched anew it knows none.
    const id = (document.activeElement as HTMLElement | null)?.dataset.id ?? body.querySelector<HTMLElement>("[data-id]")?.dataset.id;
    if (id !== undefined) open(id);
  }

  function chooseFocused(): void {
    const focused = document.activeElement as HTMLElement | null;
    const mark = focused?.querySelector<HTMLInputElement>("input[type=checkbox]");
    if (!focused?.dataset.id || !mark) return;
    mark.checked = !mark.checked;
    choose(focused.dataset.id, mark.checked);
  }

  body.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target instanceof HTMLTableRowElement) open(event.target.dataset.id!);
  });
  const watching = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && void next(), { rootMargin: "600px" });
  watching.observe(more);
  reload();
  return {
    root,
    dispose: () => {
      stopped = true;
      clearTimeout(timer);
      clearTimeout(poller);
      watching.disconnect();
    },
  };
}

/** Where an export lies. */
export function showFolder(folder: string, cases: number): void {
  const shown = el(
    "dialog",
    { class: "said" },
    el("h2", {}, `${cases} case${cases === 1 ? "" : "s"} exported`),
    el("p", {}, "Each has its scan, its label, an ITK-SNAP label file and a Slicer colour table. Correct the label there, save it under its name, and bring it back on the case’s page."),
    el("pre", { tabindex: "0" }, folder),
    el("form", { method: "dialog" }, el("button", { class: "button" }, "Close")),
  );
  shown.addEventListener("close", () => shown.remove());
  document.body.append(shown);
  shown.showModal();
}

export const organName = (name: string, colour: string): HTMLElement => el("span", { class: "organ" }, swatch(colour), words(name));
