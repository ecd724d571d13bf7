// How a run goes on: curves that grow, time left, rounds, notices, the log's last lines.
import uPlot from "uplot";
import { get, type Progress } from "./api";
import { count, duration, el, fill, fixed } from "./dom";
import { setBindings } from "./keys";
import { complain, go, info, isDark, offer, type Page } from "./shell";

interface Curve { title: string; note: string; keys: (names: string[]) => [string, string][]; share?: boolean }
const named = (pairs: Record<string, string>) => (names: string[]): [string, string][] =>
  Object.entries(pairs).filter(([name]) => names.includes(name));
const CURVES: Curve[] = [
  {
    title: "Losses",
    note: "What each network learns from.",
    keys: named({ labelled_loss: "labelled scans", pseudo_loss: "student on pseudo-labels", student_labelled_loss: "student on labelled scans" }),
  },
  {
    title: "Validation Dice",
    note: "On validation cases, which are never trained on.",
    keys: (names) => [
      ...named({ validation_dice: "mean" })(names),
      ...names.filter((name) => name.startsWith("validation_dice/")).map((name): [string, string] => [name, name.slice(16).replaceAll("_", " ")]),
    ],
    share: true,
  },
  { title: "Confidence", note: "Of the teacher, mean of its largest probability.", keys: named({ confidence: "confidence" }), share: true },
  { title: "Feedback", note: "How strongly the student's result steers the teacher.", keys: named({ feedback: "feedback" }) },
];
const STATES: Record<Progress["state"], string> = { running: "Training", stopped: "Stopped", finished: "Finished", not_begun: "Not begun" };

export function runPage(): Page {
  let rows: Progress["rows"] = [];
  let after = -1;
  let timer = 0;
  let done = false;
  const plots = new Map<string, { plot: uPlot; keys: string }>();
  const state = el("h1", {});
  const lead = el("p", { class: "lead" });
  const bar = el("i", {});
  const facts = el("dl", { class: "facts" });
  const notices = el("ul", { class: "failures" });
  const curves = el("div", { class: "curves" });
  const rounds = el("div", {});
  const log = el("pre", { class: "log", tabindex: "0" });
  const root = el(
    "div",
    { class: "run" },
    el("div", { class: "run-head" }, el("div", {}, el("p", { class: "kicker" }, info.name), state, lead), facts),
    el("div", { class: "progress", role: "presentation" }, bar),
    notices,
    curves,
    rounds,
    el("section", {}, el("h2", {}, "Log"), log),
  );
  setBindings([{ keys: ["enter"], shown: "Enter", says: "The report", press: () => info.pages.report && go("report") }]);

  async function poll(): Promise<void> {
    let wait = 10_000;
    try {
      const found = await get<Progress>(`/api/run?after=${after}`);
      if (done) return;
      if (found.step < after) [rows, after] = [[], -1]; // begun anew
      rows = rows.concat(found.rows);
      const last = found.rows.at(-1)?.step;
      if (typeof last === "number") after = last;
      if (found.state === "running") wait = 2_000;
      show(found);
    } catch (error) {
      complain(error);
    }
    if (!done) timer = window.setTimeout(poll, document.hidden ? 4 * wait : wait);
  }

  function show(found: Progress): void {
    if (found.report && !info.pages.report) {
      info.pages.report = true;
      offer();
    }
    state.textContent = STATES[found.state];
    const total = found.total;
    const share = found.state === "finished" ? 1 : total ? Math.min(1, found.step / total) : 0;
    bar.style.width = `${(100 * share).toFixed(2)}%`;
    fill(lead, ...sentence(found));
    const facts_: [string, string][] = [
      ["Step", total ? `${count(found.step)} of ${count(total)}` : count(found.step)],
      ["Time", duration(found.seconds)],
      ...(found.state === "running" || found.state === "stopped" ? ([["Time left", duration(found.seconds_left)]] as [string, string][]) : []),
    ];
    for (const [name, text] of [["learning_rate", "Learning rate"], ["gradient_norm", "Gradient norm"]] as const) {
      const value = rows.at(-1)?.[name];
      if (typeof value === "number") facts_.push([text, value.toPrecision(3)]);
    }
    fill(facts, ...facts_.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text))));
    fill(notices, ...found.notices.map((text) => el("li", {}, text)));
    fill(rounds, ...roundsOf(found.rounds));
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    log.textContent = found.log.join("\n") || "Nothing has been logged yet.";
    if (atEnd) log.scrollTop = log.scrollHeight;
    draw();
  }

  function draw(): void {
    const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
    for (const curve of CURVES) {
      const keys = curve.keys(names).filter(([name]) => rows.some((row) => typeof row[name] === "number" && row[name] !== 0));
      const id = keys.join();
      const known = plots.get(curve.title);
      if (!keys.length) continue;
      const shown = rows.filter((row) => keys.some(([name]) => typeof row[name] === "number"));
      const data = [shown.map((row) => Number(row.step)), ...keys.map(([name]) => shown.map((row) => (typeof row[name] === "number" ? row[name] : null)))] as uPlot.AlignedData;
      if (known?.keys === id) {
        known.plot.setData(data);
        continue;
      }
      known?.plot.root.closest(".card")?.remove();
      const card = el("div", { class: "card" }, el("h3", {}, curve.title), el("p", { class: "note" }, curve.note));
      curves.append(card);
      plots.set(curve.title, { plot: plotOf(card, curve, keys, data), keys: id });
    }
  }

  function plotOf(card: HTMLElement, curve: Curve, keys: [string, string][], data: uPlot.AlignedData): uPlot {
    const style = getComputedStyle(document.documentElement);
    const colour = (name: string) => resolved(style.getPropertyValue(`--${name}`));
    const axis = (): uPlot.Axis => ({ stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" });
    const keysShown = el("div", { class: "keys" });
    const swatches = keys.map(([, label], index) => {
      const line = el("i", {});
      line.style.background = `var(--series-${(index % 7) + 1})`;
      const value = el("b", {});
      keysShown.append(el("span", {}, line, label, " ", value));
      return value;
    });
    card.append(keysShown);
    const showValues = (plot: uPlot) => {
      const at = plot.cursor.idx ?? plot.data[0].length - 1;
      swatches.forEach((shown, index) => {
        const values = plot.data[index + 1]!;
        let place = at;
        while (place > 0 && values[place] === null) place--;
        shown.textContent = fixed(values[place], 3);
      });
    };
    const plot = new uPlot(
      {
        width: Math.max(300, card.clientWidth - 48),
        height: 200,
        legend: { show: false },
        cursor: { y: false, points: { size: 7 } },
        scales: { x: { time: false }, ...(curve.share ? { y: { range: (_plot, low, high) => [Math.min(0, low), Math.max(1, high)] as [number, number] } } : {}) },
        axes: [{ ...axis(), size: 28 }, { ...axis(), size: 52 }],
        series: [{}, ...keys.map(([, label], index) => ({ label, stroke: colour(`series-${(index % 7) + 1}`), width: 1.8, spanGaps: true, points: { show: data[0].length < 30 } }))],
        hooks: { setCursor: [showValues], setData: [showValues], ready: [showValues] },
      },
      data,
      card,
    );
    return plot;
  }

  const redraw = () => {
    curves.replaceChildren();
    for (const { plot } of plots.values()) plot.destroy();
    plots.clear();
    draw();
  };
  const sizes = new ResizeObserver(() => {
    for (const { plot } of plots.values()) {
      const width = Math.max(300, (plot.root.parentElement?.clientWidth ?? 348) - 48);
      if (width !== plot.width) plot.setSize({ width, height: 200 });
    }
  });
  sizes.observe(curves);
  window.addEventListener("themechange", redraw);
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  preferred.addEventListener("change", redraw);
  void poll();
  return {
    root,
    dispose: () => {
      done = true;
      clearTimeout(timer);
      sizes.disconnect();
      window.removeEventListener("themechange", redraw);
      preferred.removeEventListener("change", redraw);
      for (const { plot } of plots.values()) plot.destroy();
    },
  };
}

function sentence(found: Progress): (string | Node)[] {
  switch (found.state) {
    case "running":
      return [found.seconds_left === null ? "Training is under way." : `${duration(found.seconds_left)} left.`, " This page follows by itself."];
    case "stopped":
      return ["Nobody works on this run now. The command that began it goes on from the last checkpoint."];
    case "not_begun":
      return ["No step has been logged yet."];
    case "finished":
      return info.pages.report ? ["The run is done: ", el("a", { href: "#/report" }, "read the report"), "."] : ["Training is done."];
  }
}

function roundsOf(found: Record<string, unknown>[]): (Node | null)[] {
  if (!found.length) return [];
  const cell = (value: unknown) => (typeof value === "number" ? (Number.isInteger(value) ? count(value) : value.toFixed(3)) : String(value ?? "–"));
  return [
    el(
      "section",
      {},
      el("h2", {}, "Rounds of pseudo-labels"),
      el("p", { class: "note" }, "Each time whole unlabelled scans were labelled by the network so far."),
      el(
        "table",
        {},
        el("thead", {}, el("tr", {}, ...["Round", "Step", "Scans", "Agreement", "Learnt from", "Why"].map((text) => el("th", {}, text)))),
        el("tbody", {}, ...found.map((round) =>
          el("tr", {}, el("td", {}, cell(round.round)), el("td", {}, cell(round.step)), el("td", {}, cell(round.scans)), el("td", {}, cell(round.agreement)), el("td", {}, round.trusted ? "yes" : "no"), el("td", { class: "why" }, String(round.why ?? ""))),
        )),
      ),
    ),
  ];
}

/** A colour that a canvas understands: custom properties may hold light-dark(). */
function resolved(colour: string): string {
  const probe = el("i", {});
  probe.style.color = colour.trim();
  probe.style.colorScheme = isDark() ? "dark" : "light";
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
