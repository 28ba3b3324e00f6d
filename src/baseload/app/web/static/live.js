// The live page: takes news from /api/events, puts changed sections in place without losing focus, draws the charts.
// No library but uPlot; no text from outside ever becomes HTML here: sections come escaped from our own templates.
"use strict";
(function () {
  const $ = (id) => document.getElementById(id);
  const currency = document.body.dataset.currency;
  const HISTORY_S = 900;

  // ---- numbers with their units, as the report writes them --------------------------------------------------
  const NONE = "–";
  const digits = (value) => {
    if (value === 0) return "0";
    const places = 2 - Math.floor(Math.log10(Math.abs(value)));
    const rounded = places < 0 ? Math.round(value / 10 ** -places) * 10 ** -places : +value.toFixed(Math.min(places, 12));
    return rounded.toLocaleString("en-US", { maximumFractionDigits: Math.max(0, Math.min(places, 12)) });
  };
  const plain = (unit) => (value) => (value == null ? NONE : digits(value) + unit);
  const scaled = (unit) => (value) => {
    if (value == null) return NONE;
    for (const [size, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(value) >= size * 0.9995) return (digits(value / size) + " " + prefix + unit).trimEnd();
    return (digits(value) + " " + unit).trimEnd();
  };
  const seconds = (value) => (value == null ? NONE : Math.abs(value) >= 0.9995 ? digits(value) + " s" : digits(value * 1e3) + " ms");
  const power = (kw) => (kw == null ? NONE : Math.abs(kw) >= 1000 ? digits(kw / 1000) + " MW" : Math.abs(kw) >= 1 || kw === 0 ? digits(kw) + " kW" : digits(kw * 1e3) + " W");

  // ---- charts -----------------------------------------------------------------------------------------------
  // [column, words, colour, dashed]
  const PLOTS = {
    load: { unit: plain("/s"), axis: plain(""), lines: [["requests_per_s", "served", "--c0"], ["refused_per_s", "refused", "--c1"], ["failed_per_s", "failed", "--over"]] },
    power: { unit: power, lines: [["power_kw", "drawn", "--c0"], ["limit_kw", "may be drawn now", "--over", true], ["contract_kw", "contract", "--dim", true]], without: "tenant/" },
    ttft: { unit: seconds, lines: [["ttft_s_p50", "half within", "--c0"], ["ttft_s_p99", "99 % within", "--c1"]], slo: "ttft" },
    tpot: { unit: seconds, lines: [["tpot_s_p50", "half within", "--c0"], ["tpot_s_p99", "99 % within", "--c1"]], slo: "tpot" },
    tokens: { unit: scaled("tokens/s"), axis: scaled(""), lines: [["input_tokens_per_s", "input", "--c0"], ["output_tokens_per_s", "output", "--c1"]] },
    money: { unit: plain(" " + currency + "/h"), axis: plain(""), lines: [["revenue_per_h", "revenue", "--c0"], ["cost_per_h", "cost", "--c1"]] },
  };
  let points = { at_s: [] };
  let scope = "";
  const drawn = {};
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function linesOf(name) {
    const plot = PLOTS[name];
    const lines = plot.lines.filter(([column]) => (points[column] || []).some((value) => value != null));
    const option = $("scope").selectedOptions[0];
    const limit = plot.slo && option ? parseFloat(option.dataset[plot.slo]) : NaN;
    if (lines.length && limit > 0) lines.push([null, "SLO", "--over", true, limit]);
    return lines;
  }

  const valuesOf = (line) => (line[0] ? points[line[0]] : points.at_s.map(() => line[4]));

  function options(name, lines, box) {
    const plot = PLOTS[name];
    const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    return {
      width: Math.max(120, box.clientWidth), height: 170, legend: { show: false }, cursor: { show: false }, padding: [8, 26, 0, 0],
      scales: { x: { time: true }, y: { range: (u, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
      axes: [
        { ...axis, size: 26, space: 80, values: (u, at, i, space, step) => at.map((one) => new Date(one * 1000).toISOString().slice(11, step < 60 ? 19 : 16)) },
        { ...axis, size: 58, space: 34, values: (u, at) => at.map((one) => (plot.axis || plot.unit)(one)) },
      ],
      series: [{}].concat(lines.map(([, , tone, dashed]) => ({ stroke: colour(tone), width: dashed ? 1.4 : 1.8, dash: dashed ? [5, 4] : undefined, points: { show: false }, spanGaps: true }))),
    };
  }

  function draw(name, again) {
    const figure = $("plot-" + name), box = figure.querySelector(".plot"), plot = PLOTS[name];
    const lines = linesOf(name), shape = lines.map((line) => line.join()).join("|");
    figure.hidden = Boolean(plot.without && scope.startsWith(plot.without));
    if (figure.hidden) return;
    const rows = [points.at_s].concat(lines.map(valuesOf));
    const old = drawn[name];
    if (old && (again || old.shape !== shape)) { old.chart.destroy(); delete drawn[name]; }
    if (lines.length && points.at_s.length > 1) {
      if (drawn[name]) drawn[name].chart.setData(rows);
      else drawn[name] = { shape, chart: new uPlot(options(name, lines, box), rows, box) };
    }
    tell(figure, plot, lines);
  }

  function tell(figure, plot, lines) {
    const legend = figure.querySelector(".legend");
    const items = lines.map((line) => {
      const values = valuesOf(line), item = document.createElement("li"), swatch = document.createElement("i"), now = document.createElement("b");
      swatch.className = line[3] ? "dash " + (line[2] === "--over" ? "l2" : "l3") : { "--c0": "l0", "--c1": "l1", "--over": "l2" }[line[2]] || "l3";
      now.textContent = plot.unit(values[values.length - 1]);
      item.append(swatch, line[1] + " ", now);
      return item;
    });
    legend.replaceChildren(...items);
    const words = lines.filter((line) => line[0] && !line[3]).slice(0, 2).map((line) => {
      let low = Infinity, high = -Infinity;
      for (const value of valuesOf(line)) if (value != null) { low = Math.min(low, value); high = Math.max(high, value); }
      return `${line[1]} between ${plot.unit(low)} and ${plot.unit(high)}`;
    });
    const span = points.at_s.length > 1 ? points.at_s[points.at_s.length - 1] - points.at_s[0] : 0;
    const long = span >= 120 ? Math.round(span / 60) + " minutes" : span + " s";
    const text = words.length ? `In ${long}: ${words.join("; ")}.` : "No figures yet.";
    const alt = figure.querySelector(".alt");
    if (alt.textContent !== text) alt.textContent = text;
  }

  function drawAll(again) {
    for (const name of Object.keys(PLOTS)) draw(name, again);
  }

  function take(news, whole) {
    if (whole) points = news;
    else if (news.at_s.length) for (const name of Object.keys(news)) points[name] = (points[name] || []).concat(news[name]);
    const first = points.at_s.findIndex((at) => at > points.at_s[points.at_s.length - 1] - HISTORY_S);
    if (first > 0) for (const name of Object.keys(points)) points[name] = points[name].slice(first);
  }

  // ---- sections: the new tree is laid over the old one, so that focus, scrolling and open details stay ---------
  function lay(old, fresh) {
    if (old.nodeType === 3 || old.nodeType === 8) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    for (const { name } of [...old.attributes])
      if (!fresh.hasAttribute(name) && !(name === "open" && old.dataset.keep === "open") && name !== "hidden") old.removeAttribute(name);
    for (const { name, value } of [...fresh.attributes]) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    children(old, fresh);
  }

  const keyOf = (node) => (node.nodeType === 1 ? node.getAttribute("data-key") : null);

  function children(old, fresh) {
    const keyed = new Map();
    for (const child of old.childNodes) if (keyOf(child)) keyed.set(keyOf(child), child);
    let at = old.firstChild;
    for (const wanted of [...fresh.childNodes]) {
      const key = keyOf(wanted);
      let found = key ? keyed.get(key) : at && !keyOf(at) && at.nodeName === wanted.nodeName ? at : null;
      if (found && found.nodeName !== wanted.nodeName) found = null;
      if (!found) {
        old.insertBefore(wanted, at);
        continue;
      }
      keyed.delete(key);
      if (found !== at) old.insertBefore(found, at);
      else at = at.nextSibling;
      lay(found, wanted);
    }
    while (at) { const next = at.nextSibling; at.remove(); at = next; }
    for (const left of keyed.values()) left.remove();
  }

  function show(sections) {
    for (const [name, html] of Object.entries(sections)) {
      const place = $("s-" + name);
      if (!place) continue;
      const holder = document.createElement("template");
      holder.innerHTML = html;
      children(place, holder.content);
    }
    filter();
  }

  function filter() {
    const part = $("filter").value.trim().toLowerCase();
    for (const row of document.querySelectorAll("tr[data-name]")) row.hidden = part !== "" && !row.dataset.name.toLowerCase().includes(part);
  }

  // ---- what is said aloud: changes of state alone, never figures -------------------------------------------------
  let alarms = null;
  function say(text) {
    if ($("say").textContent !== text) $("say").textContent = text;
  }
  function sayAlarms() {
    const now = document.querySelectorAll("#s-notices .notice").length;
    if (alarms !== null && now !== alarms) say(now > alarms ? `A new notice: ${now} in all.` : now ? `${now} notices left.` : "All notices are gone.");
    alarms = now;
    const name = document.title.replace(/^\(\d+\) /, "");
    document.title = now ? `(${now}) ${name}` : name;
  }

  // ---- the connection --------------------------------------------------------------------------------------
  let source = null, paused = false, heard = 0, waiting = 0;
  function state(name, words) {
    const pill = $("link");
    if (pill.dataset.state === name && pill.textContent === words) return;
    if (pill.dataset.state === "lost" && name === "live") say("Connected again.");
    if (pill.dataset.state !== "lost" && name === "lost") say("Connection lost. The figures shown are old.");
    pill.dataset.state = name;
    pill.textContent = words;
    document.body.classList.toggle("stale", name === "lost");
  }
  const lost = () => state("lost", "connection lost; figures of " + ($("as-of") ? $("as-of").textContent : "?") + " UTC");

  function connect() {
    if (source) source.close();
    source = new EventSource("/api/events?scope=" + encodeURIComponent(scope));
    source.onmessage = (event) => {
      const news = JSON.parse(event.data);
      heard = Date.now();
      if (!paused) state("live", "live");
      take(news.points, news.whole);
      if (paused) { Object.assign(held, news.sections); return; }
      show(news.sections);
      drawAll(false);
      sayAlarms();
    };
    source.addEventListener("bye", () => { source.close(); lost(); later(); });
    source.onerror = () => { if (!paused) lost(); if (source.readyState === 2) later(); };
  }

  function later() {
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      try {
        const answer = await fetch("/api/ladder", { cache: "no-store" });
        if (answer.status === 401) { state("lost", "logged out"); location.assign("/login"); return; }
        if (answer.ok) { connect(); return; }
      } catch { /* still away */ }
      later();
    }, 2000);
  }

  const held = {};
  function pause() {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    $("pause").textContent = paused ? "Resume" : "Pause";
    if (paused) { state("paused", "paused at " + $("as-of").textContent + " UTC"); return; }
    show(held);
    for (const name of Object.keys(held)) delete held[name];
    drawAll(false);
    state("live", "live");
  }

  async function reload() {
    const box = $("answer");
    let text, bad = false;
    try {
      const answer = await fetch("/api/reload", { method: "POST" }), body = await answer.json();
      bad = !answer.ok;
      const problems = ((body.error && body.error.problems) || []).map((one) => `${one.file}${one.line ? ":" + one.line : ""} ${one.key}: ${one.what}${one.mend ? "; " + one.mend : ""}`);
      text = bad ? [body.error.message, ...problems].join("\n") : `Version ${body.version} of the fleet file is in force.`;
    } catch { bad = true; text = "The fleet file was not reloaded: no connection."; }
    box.className = bad ? "answer bad" : "answer";
    box.textContent = text;
    box.hidden = false;
  }

  $("pause").addEventListener("click", pause);
  if ($("reload")) $("reload").addEventListener("click", reload);
  $("filter").addEventListener("input", filter);
  $("scope").addEventListener("change", () => { scope = $("scope").value; points = { at_s: [] }; connect(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(true));
  let width = 0;
  new ResizeObserver((seen) => {
    const now = Math.round(seen[0].contentRect.width);
    if (now !== width) { width = now; drawAll(true); }
  }).observe(document.querySelector(".plots"));
  setInterval(() => { if (!paused && heard && Date.now() - heard > 6000) lost(); }, 1000);
  connect();
})();
