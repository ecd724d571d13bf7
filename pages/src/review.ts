// The queue: a strip of each label, one key for each decision. The next strips are decoded before they are wanted, and a
// decision is sent while the next one is looked at already.
import { get, getCase, ofCase, post, query, Refused, unlost, type Case, type CaseList, type Decision, type Judged, type Queue } from "./api";
import { showFolder } from "./cases";
import { count, duration, el, fill, fixed, key, swatch, volume, words } from "./dom";
import { setBindings, type Binding } from "./keys";
import { complain, go, hashOfCase, info, toast, type Page, type Where } from "./shell";
import { VERDICTS } from "./verdicts";

const ORDERS = ["doubt", "random", "stratified"] as const;
type Order = (typeof ORDERS)[number];
const AHEAD = 3;
const ASK_AFTER = 8;
const PANELS = ["axial", "coronal", "sagittal"];
const LETTERS = [["R", "L", "A", "P"], ["R", "L", "S", "I"], ["A", "P", "S", "I"], ["R", "L", "A", "P"]];

interface Item {
  id: string;
  audit: boolean;
  details: Promise<Case>;
  strip: Promise<HTMLImageElement>;
  bare: Promise<HTMLImageElement>;
}

const chosen: { order: Order; organ: string; style: "outline" | "fill"; look: number } = { order: "doubt", organ: "", style: "outline", look: 0 };

export function reviewPage(where: Where): Page {
  if (where.query.get("organ") && info.organs.some((organ) => organ.name === where.query.get("organ"))) chosen.organ = where.query.get("organ")!;
  let queue: string[] = [];
  let audits = new Set<string>();
  let numbers: Queue | null = null;
  let current: Item | null = null;
  let details: Case | null = null;
  let shownAt = 0;
  let away = 0;
  let awaySince = 0;
  let turn = 0;
  let since = 0;
  let sending: Promise<unknown> = Promise.resolve();
  let stopped = false;
  const skipped: string[] = [];
  const decided: string[] = [];
  const items = new Map<string, Item>();

  const orderNames: Record<Order, string> = info.doubts
    ? { doubt: "most doubtful first", random: "at random", stratified: "each fifth by doubt in turn" }
    : { doubt: "odd ones first", random: "at random", stratified: "each fifth by oddness in turn" };
  const strip = el("div", { class: "strip" });
  const lastPanel = el("span", { class: "caption" });
  const letters = el("div", { class: "letters" }, ...[...PANELS.map((plane) => el("span", { class: "caption" }, plane)), lastPanel].map((caption, index) =>
    el("div", {}, ...["left", "right", "top", "bottom"].map((side, at) => el("span", { class: `edge ${side}` }, LETTERS[index]![at]!)), caption),
  ));
  const framed = el("div", { class: "strip-frame" }, strip, letters);
  const head = el("div", { class: "review-head" });
  const heading = el("div", { class: "review-title" });
  const facts = el("div", { class: "review-facts" });
  const past = el("ol", { class: "past" });
  const tally = el("div", { class: "tally" });
  const buttons = el("div", { class: "buttons big" }, ...VERDICTS.map((one) => {
    const [name, why] = one.says.split(": ");
    return el("button", { class: `button ${one.decision}`, onclick: () => decide(one.decision) }, el("span", {}, el("b", {}, name!), el("small", {}, why!)), key(one.key.toUpperCase()));
  }));
  const lookName = el("span", {});
  const others = el("div", { class: "buttons" },
    el("button", { class: "button small", onclick: () => undo() }, "Undo ", key("Z")),
    el("button", { class: "button small", onclick: () => skip() }, "Next ", key("N")),
    el("button", { class: "button small", onpointerdown: () => hide(true), onpointerup: () => hide(false), onpointerleave: () => hide(false) }, "Hide while held ", key("H")),
    el("button", { class: "button small", onclick: () => changeStyle() }, "Outline or fill ", key("O")),
    info.looks.length > 1 && el("button", { class: "button small", onclick: () => nextLook() }, lookName, " ", key("W")),
    el("button", { class: "button small", onclick: () => open() }, "Open the case ", key("Enter")),
    el("span", { class: "grow" }),
    info.corrections && el("button", { class: "button small", onclick: () => void exportThem() }, "Export what is to be labelled ", key("E")));
  const root = el("div", { class: "review" }, head, heading, framed, buttons, others, el("div", { class: "under" }, facts, el("section", { class: "card" }, el("h3", {}, "Just decided"), past), tally));

  function bar(): void {
    const order = (name: Order, number: number) =>
      el("button", { class: "chip", "aria-pressed": chosen.order === name ? "true" : "false", title: `Key ${number}`, onclick: () => change({ order: name }) },
        orderNames[name], " ", key(String(number)));
    const organ = el("select", { "aria-label": "Organ", onchange: (event: Event) => change({ organ: (event.target as HTMLSelectElement).value }) },
      el("option", { value: "" }, "all organs at once"), ...info.organs.map((one) => el("option", { value: one.name }, words(one.name))));
    organ.value = chosen.organ;
    fill(head, el("div", { class: "chips" }, ...ORDERS.map((name, index) => order(name, index + 1))), organ, el("small", { class: "hint" }, key(","), " ", key(".")), el("span", { class: "grow" }), progress());
  }

  function progress(): HTMLElement {
    if (!numbers) return el("span", {});
    const all = numbers.done + numbers.left;
    const line = el("i", {});
    line.style.width = `${all ? (100 * numbers.done) / all : 0}%`;
    const left = numbers.minutes_left === null ? "" : ` · ${duration(60 * numbers.minutes_left)} left at your ${fixed(numbers.seconds_per_case, 1)} s a case`;
    return el("div", { class: "so-far" }, el("span", {}, el("b", {}, count(numbers.done)), ` of ${count(all)} decided${left}`), el("div", { class: "progress" }, line));
  }

  function tell(): void {
    bar();
    if (!numbers) return;
    const { audit } = numbers;
    const percent = (value: number | null) => (value === null ? "–" : `${Math.round(100 * value)} %`);
    fill(
      tally,
      el("section", { class: "card" },
        el("h3", {}, "How good is what you accept?"),
        audit.looked_at
          ? el("p", {}, el("b", { class: "big" }, percent(audit.right / audit.looked_at)), ` accepted again, 95 % interval ${percent(audit.low)} to ${percent(audit.high)}`)
          : el("p", { class: "note" }, "Not known yet."),
        el("p", { class: "note" }, `${Math.round(100 * audit.share)} % of what was accepted comes again later, unmarked among the others. ${count(audit.looked_at)} looked at twice, ${count(audit.right)} accepted again.`)),
    );
  }

  function change(wish: Partial<typeof chosen>): void {
    Object.assign(chosen, wish);
    items.clear();
    skipped.length = 0;
    current = null;
    void ask(true);
  }

  async function ask(anew: boolean): Promise<void> {
    const mine = ++turn;
    since = 0;
    try {
      await sending.catch(() => {});
      const found = await get<Queue>(`/api/review?${query({ order: chosen.order, organ: chosen.organ })}`);
      if (stopped || mine !== turn) return;
      numbers = found;
      audits = new Set(found.audits);
      const there = new Set(found.queue);
      const kept = anew ? [] : queue.slice(0, AHEAD + 1).filter((id) => there.has(id) || id === current?.id);
      const last = skipped.filter((id) => there.has(id) && !kept.includes(id));
      const rest = found.queue.filter((id) => !kept.includes(id) && !last.includes(id));
      queue = [...kept, ...rest, ...last];
      tell();
      if (!current || queue[0] !== current.id) void show();
      else ahead();
    } catch (error) {
      complain(error);
    }
  }

  function item(id: string): Item {
    let found = items.get(id);
    if (!found) {
      const picture = async (overlay: boolean) => {
        const image = el("img", { alt: "", draggable: "false" });
        image.src = `${ofCase(id, "strip.png")}?${query({ organ: chosen.organ, style: chosen.style, look: chosen.look })}&overlay=${overlay ? 1 : 0}`;
        await image.decode();
        return image;
      };
      const strip = picture(true);
      found = { id, audit: audits.has(id), details: getCase(id), strip, bare: strip.then(() => picture(false)) };
      for (const promise of [found.details, found.strip, found.bare]) promise.catch(() => {});
      items.set(id, found);
    }
    return found;
  }

  function ahead(): void {
    const wanted = queue.slice(0, AHEAD + 1);
    for (const id of items.keys()) if (!wanted.includes(id)) items.delete(id);
    for (const id of wanted) item(id);
  }

  async function show(): Promise<void> {
    const id = queue[0];
    if (id === undefined) return finished();
    const next = item(id);
    current = next;
    details = null;
    heading.classList.add("waiting");
    ahead();
    try {
      const image = await next.strip;
      if (stopped || current !== next) return;
      framed.hidden = false;
      strip.replaceChildren(image);
      heading.classList.remove("waiting");
      shownAt = performance.now();
      away = 0;
      root.dataset.shown = id;
      root.dataset.at = String(shownAt);
      fill(heading, el("h1", { title: id }, id), chosen.organ ? el("span", { class: "organ" }, swatch(colourOf(chosen.organ)), words(chosen.organ)) : null);
      const of = await next.details;
      if (stopped || current !== next) return;
      details = of;
      describe(of);
      const bare = await next.bare;
      if (!stopped && current === next) {
        bare.classList.add("bare");
        strip.append(bare);
      }
    } catch (error) {
      if (stopped || current !== next) return;
      complain(error);
      items.delete(id);
      fill(heading, el("h1", {}, id), el("span", { class: "bad" }, "cannot be shown"));
      strip.replaceChildren();
    }
  }

  function describe(of: Case): void {
    lastPanel.textContent = of.doubt === null || chosen.organ ? "longest outlines" : "most doubtful"; // an organ has no doubts of its own
    const organs = of.organs.filter((organ) => !chosen.organ || organ.name === chosen.organ);
    fill(
      facts,
      el("section", { class: "card" },
        el("h3", {}, of.doubt === null ? "Organs" : `Doubt ${fixed(of.doubt, 3)}`),
        el("ul", {}, ...organs.map((organ) => el("li", { class: organ.missing || organ.outlier ? "odd" : "" },
          el("span", { class: "organ" }, swatch(colourOf(organ.name)), words(organ.name)),
          organ.missing ? " missing" : organ.volume_ml === null ? "" : ` ${volume(organ.volume_ml)}`,
          organ.outlier ? ", unusual" : "",
          organ.fragments !== null && organ.fragments > 1 ? `, ${organ.fragments} pieces` : "")))),
    );
  }

  function finished(): void {
    current = null;
    framed.hidden = true;
    root.dataset.shown = "";
    fill(facts);
    fill(heading, el("h1", {}, numbers && numbers.left === 0 ? "Everything is decided" : "Nothing is left in this queue"), el("p", { class: "note" }, info.kind === "run" ? "A run learns from it with --set data.decisions=RUN, this run's folder." : ""));
  }

  function decide(decision: Decision): void {
    const judged = current;
    if (!judged || heading.classList.contains("waiting")) return;
    const seconds = Math.round((performance.now() - shownAt - away) / 100) / 10;
    const { organ } = chosen;
    const known = details;
    queue.shift();
    decided.unshift(decision);
    mention(judged.id, decision, organ);
    if (numbers && !judged.audit) {
      numbers.done++;
      numbers.left--;
      if (numbers.seconds_per_case !== null) numbers.minutes_left = (numbers.left * numbers.seconds_per_case) / 60;
    }
    const send = async () => {
      const of = known ?? (await judged.details);
      const body: Judged = { case: judged.id, organ: organ || null, decision, label_sha256: of.label_sha256, decisions: of.decisions, seconds, audit: judged.audit };
      await post("/api/decisions", body);
    };
    sending = unlost(sending.catch(() => {}).then(send)).catch(async (error: unknown) => {
      // it was not written: the case comes again, now, unless another has decided on it
      complain(error);
      items.delete(judged.id);
      past.firstElementChild?.remove();
      const now = error instanceof Refused && error.status === 409 ? await getCase(judged.id).catch(() => null) : null;
      const state = organ ? now?.organs.find((one) => one.name === organ) : now;
      if (!stopped && !(state?.decision && !state.stale && !judged.audit)) {
        queue.unshift(judged.id);
        void show();
      }
    });
    bar();
    void show();
    if (++since >= ASK_AFTER || queue.length <= AHEAD) void ask(false);
  }

  function mention(id: string, decision: Decision, organ: string): void {
    past.prepend(el("li", {}, el("span", { class: `dot ${decision}` }), el("a", { href: `#/${hashOfCase(id)}` }, id), organ ? ` ${words(organ)}` : "", ` ${VERDICTS.find((one) => one.decision === decision)!.short}`));
    while (past.children.length > 5) past.lastElementChild!.remove();
  }

  function undo(): void {
    sending = unlost(sending.catch(() => {}).then(async () => {
      const line = await post<{ case: string; organ: string | null }>("/api/decisions/undo");
      if (stopped) return;
      past.firstElementChild?.remove();
      toast(`Undone: ${line.organ ? `${words(line.organ)} of ` : ""}${line.case}`);
      if ((line.organ ?? "") !== chosen.organ) return void ask(true);
      items.delete(line.case);
      queue = [line.case, ...queue.filter((id) => id !== line.case)];
      await show();
      void ask(false);
    })).catch(complain);
  }

  function skip(): void {
    const id = queue.shift();
    if (id === undefined) return;
    queue.push(id);
    if (!skipped.includes(id)) skipped.push(id);
    void show();
  }

  const hide = (on: boolean) => void framed.classList.toggle("hidden-overlay", on);
  const open = () => current && go(hashOfCase(current.id));
  const changeStyle = () => {
    chosen.style = chosen.style === "outline" ? "fill" : "outline";
    items.clear();
    void show();
  };
  const nameLook = () => void (lookName.textContent = info.looks[chosen.look] ?? "");
  const nextLook = () => {
    chosen.look = (chosen.look + 1) % info.looks.length;
    nameLook();
    items.clear();
    void show();
  };

  async function exportThem(): Promise<void> {
    try {
      await sending.catch(() => {});
      const found = await get<CaseList>(`/api/cases?${query({ filter: "label", organ: chosen.organ, limit: 200 })}`);
      if (!found.rows.length) return toast("No case is marked “label this one”.");
      const ids = found.rows.map((row) => row.id);
      showFolder((await post<{ folder: string }>("/api/export", { cases: ids })).folder, ids.length);
    } catch (error) {
      complain(error);
    }
  }

  const stepOrgan = (by: number) => {
    const names = ["", ...info.organs.map((organ) => organ.name)];
    change({ organ: names[(names.indexOf(chosen.organ) + by + names.length) % names.length]! });
  };
  const looked = () => {
    if (document.hidden) awaySince = performance.now();
    else if (awaySince) away += performance.now() - awaySince;
  };
  document.addEventListener("visibilitychange", looked);
  setBindings([
    ...VERDICTS.map((one): Binding => ({ keys: [one.key], shown: one.key.toUpperCase(), says: one.says, once: true, press: () => decide(one.decision) })),
    { keys: ["z"], shown: "Z", says: "Undo, and see it again", once: true, press: undo },
    { keys: ["n", "arrowright"], shown: "N", says: "Next; this one comes again at the end", press: skip },
    { keys: ["h", "space"], shown: "H", says: "Hide the label while held", press: () => hide(true), release: () => hide(false) },
    { keys: ["o"], shown: "O", says: "Outline or fill", press: changeStyle },
    ...(info.looks.length > 1 ? [{ keys: ["w"], shown: "W", says: "Next channel or window", press: nextLook }] : []),
    { keys: ["enter"], shown: "Enter", says: "Open the case", press: () => void open() },
    { keys: ["1"], shown: "1 or 2 or 3", says: ORDERS.map((order) => orderNames[order]).join(", ").replace(/^./, (first) => first.toUpperCase()), press: () => change({ order: "doubt" }) },
    { keys: ["2"], shown: "", says: "", press: () => change({ order: "random" }) },
    { keys: ["3"], shown: "", says: "", press: () => change({ order: "stratified" }) },
    { keys: ["."], shown: ", or .", says: "Organ by organ, all at once again", press: () => stepOrgan(1) },
    { keys: [","], shown: "", says: "", press: () => stepOrgan(-1) },
    ...(info.corrections ? [{ keys: ["e"], shown: "E", says: "Export what is to be labelled", press: () => void exportThem() }] : []),
  ]);
  fill(heading, el("h1", {}, "Loading the queue …"));
  nameLook();
  bar();
  void ask(true);
  return {
    root,
    dispose: () => {
      stopped = true;
      document.removeEventListener("visibilitychange", looked);
    },
  };
}

const colourOf = (organ: string): string => info.organs.find((one) => one.name === organ)?.colour ?? "#888888";
