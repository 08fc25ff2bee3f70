/* The page of a Plaudit server: compare responses, draw prefix curves, score a file.
 *
 * Three rules hold in the whole script. Text enters the document through `element` and `say`, which make invisible
 * characters visible, and no markup is ever parsed. Requests go to the server of the page, which the browser has signed
 * in to. Nothing is stored unless the history is switched on.
 */

const byId = (id) => document.getElementById(id);
const sum = (numbers) => numbers.reduce((total, each) => total + each, 0);

// ---------------------------------------------------------------------------------------------- text and elements

const SVG_TAGS = new Set(["svg", "g", "line", "path", "rect", "circle", "text"]);
// Emoji joined by U+200D and Arabic letters parted by U+200C are ordinary writing. Every other character that is
// invisible or that turns the direction of text is written as its code point.
const EMOJI = String.raw`\p{ExtPict}\p{EMod}?\uFE0F?`;
const ORDINARY = String.raw`${EMOJI}(?:\u200D${EMOJI})*|\p{sc=Arab}\u200C(?=\p{sc=Arab})`;
const INVISIBLE = String.raw`[^\n\t\P{Cc}]|[\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{DI}]`;
const CHARACTERS = new RegExp(`(${ORDINARY})|(${INVISIBLE})`, "gu");

const codePoint = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** Write each invisible or direction-turning character of a text as ⟦U+202E⟧. */
function visible(text) {
  return String(text).replace(CHARACTERS, (character, ordinary) => ordinary ?? `⟦${codePoint(character)}⟧`);
}

/** Make an element. Children that are no nodes become text; attributes named "onclick" and the like, listeners. */
function element(tag, attributes = {}, ...children) {
  const svg = SVG_TAGS.has(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false) node.setAttribute(name, value === true ? "" : visible(value));
  }
  node.append(...children.map((child) => (child instanceof Node ? child : visible(child))));
  return node;
}

/** Replace the content of an element by nodes and texts. */
function say(node, ...children) {
  node.replaceChildren(...children.map((child) => (child instanceof Node ? child : visible(child))));
}

/** Make a button that is none of a form's. */
const button = (label, onclick, more = {}) => element("button", { type: "button", onclick, ...more }, label);

/** Copy the one element of a template. */
const copyOf = (id) => byId(id).content.firstElementChild.cloneNode(true);

const signed = (number, digits = 3) => (number < 0 ? "−" : "+") + Math.abs(number).toFixed(digits);
const decimal = (number, digits = 3) => (number < 0 ? "−" : "") + Math.abs(number).toFixed(digits);
/** Write a reward, with its standard deviation where the model gives one. */
const rewardText = (reward, std) => decimal(reward) + (std === undefined ? "" : `\u00a0±\u00a0${decimal(std)}`);
const whole = (number) => Math.round(number).toLocaleString("en");
const plural = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;
const percent = (share) =>
  share > 0 && share < 0.0005 ? "< 0.1%" : share < 1 && share > 0.9995 ? "> 99.9%" : `${(100 * share).toFixed(1)}%`;

/** List the invisible characters of what was typed: a text field itself cannot show them. */
function listInvisible(text, place) {
  const found = [...text.matchAll(CHARACTERS)].filter((match) => match[2]).map((match) => codePoint(match[2]));
  say(place, found.length ? `Invisible characters: ${[...new Set(found)].slice(0, 8).join(", ")}.` : "");
}

// --------------------------------------------------------------------------------------------------------- server

/** An answer that is no success: `status` is 0 where the server could not be reached. */
class Failure extends Error {
  constructor(message, { status = 0, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, retryAfter });
  }
}

/** Send a request to the native API, a GET without a body, and return the JSON value of its answer. */
async function call(path, body, signal) {
  const sent = { headers: { "Content-Type": "application/json" }, method: "POST", body: JSON.stringify(body) };
  try {
    const response = await fetch(path, { ...(body && sent), signal, cache: "no-store", redirect: "error" });
    if (response.ok) return await response.json();
    const error = (await response.json().catch(() => null))?.error ?? {};
    const refused = "The key was refused. Reload the page to sign in again.";
    const message = response.status === 401 ? refused : error.message ?? `The server answered ${response.status}.`;
    const wait = parseInt(response.headers.get("Retry-After") ?? "", 10);
    throw new Failure(message, { status: response.status, param: error.param, retryAfter: wait >= 0 ? wait : null });
  } catch (error) {
    if (error instanceof Failure || signal?.aborted) throw error;
    throw new Failure("The server did not answer. Check that it still runs, then try again.");
  }
}

let server = { version: "", models: [] };

const model = () => server.models[byId("model").value] ?? {};
const settings = () => ({ model: model().name, truncation: byId("truncate").checked ? "left" : "error" });

const EXPLANATION = "± is one standard deviation of a reward, as the model estimates it.";

/** Return where an answer comes from, in a line. */
function sourceOf({ model: name, weight_version, usage, timing }) {
  const shared = usage.distinct_tokens < usage.tokens ? `, ${whole(usage.distinct_tokens)} of them run` : "";
  const tokens = `${plural(usage.tokens, "token")}${shared}`;
  return `Model ${name}, weights ${weight_version} · ${tokens} · ${whole(timing.total_ms)} ms`;
}

/** Return a note for the rewards of `subject`, whose form is none that the model was trained on; else no words. */
function noteOfForm({ name, trained_on }, form, subject) {
  if (!trained_on || form === trained_on) return "";
  const rendered = form === "texts" ? ", unless the chat template has written them" : "";
  return `${name} was trained on ${trained_on}: the rewards of ${subject} mean little${rendered}.`;
}

/** Show what the selected model is, and set what depends on it. */
function showModel() {
  const { name, weight_version, dtype, max_length, trained_on, temperature, has_chat_template, uncertainty } = model();
  const limit = max_length ? `at most ${whole(max_length)} tokens` : "texts of any length";
  const training = trained_on && `trained on ${trained_on}`;
  const deviations = uncertainty && "rewards with standard deviations";
  const facts = [`weights ${weight_version}`, dtype, limit, training, deviations, `Plaudit ${server.version}`];
  say(byId("facts"), element("strong", {}, name), ` · ${facts.filter(Boolean).join(" · ")}`);
  byId("calibrated-choice").hidden = !temperature;
  byId("as-conversation").checked = trained_on === "conversations";
  byId("as-conversation-choice").hidden = !has_chat_template;
  for (const editor of editors) editor.allow(Boolean(has_chat_template), trained_on === "conversations");
}

async function loadModels() {
  try {
    server = await call("info");
    say(byId("model"), ...server.models.map(({ name }, n) => element("option", { value: n }, name)));
    byId("model-choice").hidden = server.models.length < 2;
    byId("options").hidden = false;
    byId("truncate").checked = Boolean(server.truncates);
    showModel();
  } catch (error) {
    say(byId("facts"), "");
    say(byId("server-error"), error.message);
  }
}

// ---------------------------------------------------------------------------------------------------------- forms

/**
 * Run an action of a form, whose results stand beside it. An error appears next to the field that caused it, and hides
 * older results. A new run replaces one that is under way.
 */
async function run(form, action) {
  form.running?.abort();
  const control = (form.running = new AbortController());
  const [status, results] = ["[role=status]", ".results"].map((name) => form.parentElement.querySelector(name));
  for (const place of form.querySelectorAll(".error")) say(place, "");
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  form.setAttribute("aria-busy", "true");
  try {
    await action(control.signal);
    results.hidden = false;
  } catch (error) {
    if (control.signal.aborted) return;
    results.hidden = true;
    say(status, "There is no result: see the message in the form.");
    showError(form, error);
  } finally {
    if (form.running === control) form.removeAttribute("aria-busy");
  }
}

/** Show an error beside the response or the prompt that it names, else below the form. */
function showError(form, error) {
  const param = error.param ?? "";
  const [named, , number] = /\bresponse(s\[(\d+)\])?/.exec(param) ?? [];
  const prompt = /prompt|messages/.test(param) ? form.querySelector(".prompt") : null;
  const field = named ? form.querySelectorAll(".response")[number ?? 0] : prompt;
  for (const area of field?.querySelectorAll("textarea") ?? []) area.setAttribute("aria-invalid", "true");
  const message = error.message.replaceAll(/responses\[\d+\]/g, "this response");
  say((field ?? form).querySelector(field ? ".error" : ".general"), message);
  if (!(error instanceof Failure)) console.error(error);
}

/** Let Ctrl+Enter in a text field send its form, and keep the browser from sending it by itself. */
function onSubmit(form, action) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

const editors = [];

/** Put an editor of a prompt, as a text or as messages, at the head of a form. */
function promptEditor(form) {
  const root = copyOf("prompt-template");
  const part = (name) => root.querySelector(name);
  const [textPart, asMessages, list] = [part(".as-text"), part(".as-messages"), part(".messages")];
  const asText = part(".as-text textarea");
  const modes = root.querySelectorAll("input");
  const mode = () => root.querySelector("input:checked").value;
  const valueOf = (row, name) => row.querySelector(name).value;
  const messages = () =>
    [...list.children].map((row) => ({ role: valueOf(row, "select"), content: valueOf(row, "textarea") }));

  const read = () => (mode() === "text" ? asText.value : messages());

  function review() {
    const words = mode() === "text" ? asText.value : messages().map(({ content }) => content).join("");
    listInvisible(words, root.querySelector(".invisible"));
    const form = mode() === "text" ? "texts" : "conversations";
    say(root.querySelector(".form-note"), noteOfForm(model(), form, form));
  }

  function addMessage({ role, content }) {
    const row = copyOf("message-template");
    row.querySelector("select").value = role;
    row.querySelector("textarea").value = content;
    row.querySelector(".remove").addEventListener("click", () => {
      row.remove();
      review();
      root.querySelector(".add-message").focus();
    });
    list.append(row);
    return row;
  }

  function write(prompt) {
    const texts = typeof prompt === "string";
    for (const each of modes) each.checked = each.value === (texts ? "text" : "messages");
    textPart.hidden = !texts;
    asMessages.hidden = texts;
    list.replaceChildren();
    if (texts) asText.value = prompt;
    else prompt.forEach(addMessage);
    review();
  }

  /** Change the kind of prompt. A text becomes the message of a user, and a first message becomes the text. */
  function change(kind) {
    write(kind === "messages" ? [{ role: "user", content: asText.value }] : messages()[0]?.content ?? "");
  }

  for (const each of modes) {
    each.name = `mode-${form.id}`;
    each.addEventListener("change", () => change(mode()));
  }
  root.querySelector(".add-message").addEventListener("click", () => {
    const role = messages().at(-1)?.role === "user" ? "assistant" : "user";
    addMessage({ role, content: "" }).querySelector("textarea").focus();
  });
  root.addEventListener("input", review);
  form.querySelector(".prompt-place").replaceWith(root);

  const editor = {
    read,
    write,
    /** Offer conversations where the model has a template, and choose what it was trained on. */
    allow(conversations, preferred) {
      root.querySelector(".modes").hidden = !conversations;
      const kind = conversations && preferred ? "messages" : "text";
      if (kind !== mode()) change(kind);
      else review();
    },
  };
  editors.push(editor);
  return editor;
}

/** Give a response the kind of its prompt, since the two are joined. */
const responseFor = (prompt, text) => (typeof prompt === "string" ? text : [{ role: "assistant", content: text }]);

const EXAMPLE = {
  prompt: "How do I get red wine out of a cotton shirt?",
  responses: [
    "Blot it, do not rub. Rinse with cold water from the back of the fabric, work in dish soap or hydrogen peroxide, " +
      "wait ten minutes, and wash as usual. Do not tumble dry until the stain is gone.",
    "Great question! Red wine is a beloved drink in many cultures. You could try washing the shirt.",
  ],
};

/** Return the prompt of the example in the kind that the selected model was trained on. */
function examplePrompt() {
  const { trained_on, has_chat_template } = model();
  const chat = trained_on === "conversations" && has_chat_template;
  return chat ? [{ role: "user", content: EXAMPLE.prompt }] : `${EXAMPLE.prompt}\n\n`;
}

// -------------------------------------------------------------------------------------------------------- compare

const [LEAST_RESPONSES, MOST_RESPONSES] = [2, 16];
const compareForm = byId("compare-form");
const comparePrompt = promptEditor(compareForm);
const responseFields = () => [...byId("responses").children];
const responseTexts = () => responseFields().map((field) => field.querySelector("textarea").value);

function addResponse(text = "") {
  const field = copyOf("response-template");
  const area = field.querySelector("textarea");
  const review = () => listInvisible(area.value, field.querySelector(".invisible"));
  area.value = text;
  area.addEventListener("input", review);
  field.querySelector(".remove").addEventListener("click", () => {
    field.remove();
    numberResponses();
    byId("add-response").focus();
  });
  byId("responses").append(field);
  review();
  numberResponses();
  return area;
}

function numberResponses() {
  const fields = responseFields();
  fields.forEach((field, n) => {
    const [area, error, remove] = ["textarea", ".error", ".remove"].map((name) => field.querySelector(name));
    area.id = `response-${n}`;
    error.id = `response-error-${n}`;
    area.setAttribute("aria-describedby", error.id);
    Object.assign(field.querySelector("label"), { htmlFor: area.id, textContent: `Response ${n + 1}` });
    remove.setAttribute("aria-label", `Remove response ${n + 1}`);
    remove.hidden = fields.length <= LEAST_RESPONSES;
  });
  byId("add-response").disabled = fields.length >= MOST_RESPONSES;
}

function fillCompare(prompt, texts) {
  comparePrompt.write(prompt);
  byId("responses").replaceChildren();
  texts.forEach((text) => addResponse(text));
}

function compare() {
  return run(compareForm, async (signal) => {
    const [prompt, texts] = [comparePrompt.read(), responseTexts()];
    const empty = texts.indexOf("");
    const emptied = { param: `responses[${empty}]` };
    if (empty >= 0) throw new Failure("This response is empty. Write it, or remove it.", emptied);
    const calibrated = byId("calibrated").checked && Boolean(model().temperature);
    const request = { ...settings(), prompt, responses: texts.map((text) => responseFor(prompt, text)), calibrated };
    const answer = await call("v1/rank", request, signal);
    showRanking(prompt, texts, answer);
    remember({ time: new Date().toISOString(), prompt, texts, answer });
  });
}

/**
 * Draw the place of a reward among those compared: a line from the lowest to the highest of them, with a dot. A reward
 * has no meaningful zero, so that only differences are drawn. Where the model gives standard deviations, the line spans
 * all rewards with theirs, and a whisker reaches one standard deviation to both sides of the dot.
 */
function rangeOf({ reward, reward_std: std }, low, high) {
  const place = (value) => `${100 * (high > low ? (value - low) / (high - low) : 1)}%`;
  const way = `${percent((reward - low) / (high - low))} of the way from the lowest reward, ${decimal(low)}, ` +
    `to the highest, ${decimal(high)}`;
  const interval = `The interval from ${decimal(reward - std)} to ${decimal(reward + std)}, on a line from ` +
    `${decimal(low)} to ${decimal(high)}`;
  const label = high > low ? (std === undefined ? way : interval) : "All rewards are equal";
  const line = (x1, x2, more) => element("line", { x1: place(x1), x2: place(x2), y1: "50%", y2: "50%", ...more });
  const end = (x) => line(x, x, { class: "whisker", y1: "10%", y2: "90%" });
  const [from, to] = [reward - std, reward + std];
  const whisker = std === undefined ? [] : [line(from, to, { class: "whisker" }), end(from), end(to)];
  return element("svg", { class: "range", role: "img", "aria-label": label },
    element("line", { x1: 0, x2: "100%", y1: "50%", y2: "50%" }), ...whisker,
    element("circle", { cx: place(reward), cy: "50%", r: 6 }));
}

/** Draw a bar whose length is a share of its track. */
function bar(share) {
  const shape = { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" };
  return element("svg", { class: "bar", ...shape },
    element("rect", { class: "track", width: 100, height: 8 }),
    element("rect", { class: "filled", width: Math.max(100 * share, 0.5), height: 8 }));
}

/** Show a text, in a box that scrolls where it is long. */
function passage(text) {
  const scrolls = text.length > 320 ? { tabindex: 0, role: "region", "aria-label": "Text" } : {};
  return element("p", { class: "text passage", dir: "auto", ...scrolls }, text);
}

function showRanking(prompt, texts, answer) {
  const rewards = answer.results.map(({ reward }) => reward);
  const [low, high] = [Math.min(...rewards), Math.max(...rewards)];
  const ends = answer.results.flatMap(({ reward, reward_std: std = 0 }) => [reward - std, reward + std]);
  const [left, right] = [Math.min(...ends), Math.max(...ends)];
  const card = (result, rank) => {
    const { index, reward, reward_std: std, win_probability } = result;
    const same = texts.flatMap((text, n) => (n !== index && text === texts[index] ? [n + 1] : []));
    const notes = [
      rank > 0 && `${signed(reward - rewards[0])} to the best`,
      rank + 1 < rewards.length && `${signed(reward - rewards[rank + 1])} to the next`,
      plural(answer.tokens[index], "token"),
      answer.truncated[index] && "truncated",
      same.length > 0 && `same text as response ${same.join(", ")}`,
    ];
    const curve = button("Curve", () => curveOf(prompt, texts[index]), { "aria-label": `Curve of response ${index + 1}` });
    const heading = element("h3", {}, element("span", { class: "rank" }, rank + 1), ` Response ${index + 1}`);
    return element("li", { class: rank === 0 ? "card best" : "card" },
      element("div", { class: "row spread" }, heading, curve),
      passage(texts[index]),
      element("div", { class: std === undefined ? "measure" : "measure long" },
        element("span", {}, "Reward"), rangeOf(result, left, right),
        element("data", { value: reward }, rewardText(reward, std)),
        element("span", {}, "Win probability"), bar(win_probability),
        element("data", { value: win_probability }, percent(win_probability))),
      element("p", { class: "quiet" }, notes.filter(Boolean).join(" · ")));
  };
  const best = answer.results[0];
  const numbers = `reward ${rewardText(best.reward, best.reward_std)}, win probability ${percent(best.win_probability)}`;
  const ranked = `Response ${best.index + 1} is the best of ${texts.length}: ${numbers}.`;
  const spans = left < low || right > high ? `spans ${decimal(left)} to ${decimal(right)}, all rewards with their ` +
    "standard deviations" : "spans that range";
  const range = `The rewards range from ${decimal(low)} to ${decimal(high)}; each line below ${spans}.`;
  const equal = `All ${texts.length} responses have the same reward, ${decimal(low)}.`;
  say(byId("compare-summary"), high > low ? `${ranked} ${range}` : equal);
  say(byId("ranking"), ...answer.results.map(card));
  const explanation = best.reward_std === undefined ? "" : ` ${EXPLANATION}`;
  say(byId("compare-source"),
    `${sourceOf(answer)} · The win probability is that of being preferred to all the others.${explanation}`);
}

// ---------------------------------------------------------------------------------------------------------- curve

const curveForm = byId("curve-form");
const curvePrompt = promptEditor(curveForm);
const chart = byId("chart");
let curve = null; // what is drawn: the answer, the first and the current point

const named = (piece) => `“${piece.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣")}”`;

function drawCurve() {
  return run(curveForm, async (signal) => {
    const [prompt, response] = [curvePrompt.read(), byId("curve-response").value];
    if (!response) throw new Failure("The response is empty. Write it first.", { param: "response" });
    const item = { prompt, response: responseFor(prompt, response) };
    const request = { ...settings(), item, every: Number(byId("every").value) };
    curve = { answer: await call("v1/prefix-rewards", request, signal), response };
    byId("curve-results").hidden = false; // the chart takes its width
    showCurve();
  });
}

const reviewCurveResponse = () => listInvisible(byId("curve-response").value, byId("curve-response-invisible"));

function curveOf(prompt, response) {
  curvePrompt.write(prompt);
  byId("curve-response").value = response;
  reviewCurveResponse();
  goTo("curve");
  return drawCurve();
}

/** Return the index of the piece in which the response begins; 0 where its text is not found. */
function startOfResponse(pieces, response) {
  const at = pieces.join("").lastIndexOf(response.trim());
  let length = 0;
  return at < 0 ? 0 : Math.max(pieces.findIndex((piece) => (length += piece.length) > at), 0);
}

function showCurve() {
  const { answer, response } = curve;
  const { pieces, rewards, reward_stds: stds, positions } = answer;
  curve.first = startOfResponse(pieces, response);
  curve.changes = rewards.map((reward, n) => (n ? reward - rewards[n - 1] : 0));
  const shown = curve.changes.slice(curve.first);
  const [fall, rise] = [Math.min(...shown), Math.max(...shown)];
  curve.largest = Math.max(-fall, rise);
  const at = (change) => named(pieces[curve.first + shown.indexOf(change)]);
  say(byId("curve-summary"), `Reward ${rewardText(rewards.at(-1), stds?.at(-1))} for all ${plural(answer.tokens, "token")}` +
    (answer.truncated ? ", truncated" : "") + (rise > 0 ? `; greatest rise ${signed(rise)} at ${at(rise)}` : "") +
    (fall < 0 ? `; greatest fall ${signed(fall)} at ${at(fall)}` : "") + ".");
  say(byId("legend"), "The reward ",
    element("span", { class: "token up3" }, `rises, by at most ${decimal(Math.max(rise, 0))}`), " or ",
    element("span", { class: "token down3" }, `falls, by at most ${decimal(Math.max(-fall, 0))}`),
    "; a paler token changes it less. ↵ is a line break, ∅ a token without text.");
  say(byId("tokens"), ...pieces.slice(curve.first).map((piece, n) => tokenElement(piece, curve.first + n)));
  say(byId("curve-source"), sourceOf(answer) + (stds ? ` · ${EXPLANATION}` : ""));
  Object.assign(byId("curve-table"), { open: false });
  chart.setAttribute("aria-valuemin", positions[curve.first]);
  chart.setAttribute("aria-valuemax", positions.at(-1));
  drawChart();
  moveTo(rewards.length - 1);
}

function tokenElement(piece, n) {
  const change = curve.changes[n];
  const level = Math.ceil((3 * Math.abs(change)) / curve.largest - 0.15);
  const kind = level > 0 ? `${change > 0 ? "up" : "down"}${level}` : "";
  const text = piece === "" ? "∅" : piece.replaceAll("\n", "↵\n");
  return element("span", { class: `token ${kind}`, onpointerenter: () => moveTo(n) }, text);
}

/** Return about `count` round numbers between two numbers. */
function roundNumbers(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step);
  const length = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length }, (_, n) => Number(((first + n) * step).toPrecision(12)));
}

/** Draw the curve in the pixels that there are, so that its numbers keep their size. */
function drawChart() {
  const { answer, first } = curve;
  const [width, height, left, right, top, bottom] = [Math.max(chart.clientWidth, 200), 240, 56, 12, 12, 34];
  const rewards = answer.rewards.slice(first);
  const positions = answer.positions.slice(first);
  const stds = answer.reward_stds?.slice(first) ?? [];
  const [below, above] = [-1, 1].map((side) => rewards.map((reward, n) => reward + side * (stds[n] ?? 0)));
  const [low, high] = [Math.min(...below), Math.max(...above)];
  const margin = (high - low) * 0.08 || 0.5;
  const [begin, end] = [positions[0], positions.at(-1)];
  const x = (position) => left + ((position - begin) / (end - begin || 1)) * (width - left - right);
  const y = (reward) => top + ((high + margin - reward) / (high - low + 2 * margin)) * (height - top - bottom);
  Object.assign(curve, { x, y, cursor: element("g", { class: "cursor" }), top, base: height - bottom });
  const digits = high - low < 0.1 ? 4 : 2;
  const yTicks = roundNumbers(low - margin, high + margin, 6).flatMap((reward) => {
    const line = { x1: left, x2: width - right, y1: y(reward), y2: y(reward) };
    return [element("line", { class: reward === 0 ? "zero" : "grid", ...line }),
      element("text", { x: left - 8, y: y(reward) + 4, "text-anchor": "end" }, decimal(reward, digits))];
  });
  const xTicks = roundNumbers(begin, end, width / 60).filter(Number.isInteger).map((position) =>
    element("text", { x: x(position), y: curve.base + 16, "text-anchor": "middle" }, whole(position)));
  const path = (values) => values.map((value, n) => `${x(positions[n]).toFixed(1)} ${y(value).toFixed(1)}`);
  const around = [...path(above), ...path(below).reverse()].join("L");
  const band = stds.length ? [element("path", { class: "band", d: `M${around}Z` })] : [];
  const size = { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" };
  say(chart, element("svg", size, ...yTicks, ...xTicks, ...band,
    element("text", { x: width - right, y: height - 4, "text-anchor": "end" }, "tokens"),
    element("path", { class: "curve", d: `M${path(rewards).join("L")}` }), curve.cursor));
}

/** Put the cursor on a point: in the chart, in the tokens and in words. */
function moveTo(n) {
  const { answer, changes, first, x, y } = curve;
  curve.point = Math.min(Math.max(n, first), answer.rewards.length - 1);
  const [reward, position, piece] = [answer.rewards, answer.positions, answer.pieces].map((each) => each[curve.point]);
  const change = curve.point > 0 ? `, ${signed(changes[curve.point])}` : "";
  const words = `token ${position} of ${answer.tokens}, ${named(piece)}: reward ` +
    `${rewardText(reward, answer.reward_stds?.[curve.point])}${change}`;
  say(curve.cursor, element("line", { x1: x(position), x2: x(position), y1: curve.top, y2: curve.base }),
    element("circle", { cx: x(position), cy: y(reward), r: 5 }));
  chart.setAttribute("aria-valuenow", position);
  chart.setAttribute("aria-valuetext", visible(words));
  say(byId("readout"), words[0].toUpperCase() + words.slice(1));
  const tokens = byId("tokens");
  tokens.querySelector(".current")?.classList.remove("current");
  const token = tokens.children[curve.point - first];
  token.classList.add("current");
  const [box, around] = [token.getBoundingClientRect(), tokens.getBoundingClientRect()];
  if (box.top < around.top || box.bottom > around.bottom) tokens.scrollTop += box.top - around.top - around.height / 2;
}

chart.addEventListener("keydown", (event) => {
  const [point, last] = [curve.point, curve.answer.rewards.length - 1];
  const target = { ArrowLeft: point - 1, ArrowDown: point - 1, ArrowRight: point + 1, ArrowUp: point + 1,
    PageDown: point - 10, PageUp: point + 10, Home: curve.first, End: last }[event.key];
  if (target === undefined) return;
  event.preventDefault();
  moveTo(target);
});
for (const kind of ["pointerdown", "pointermove"]) {
  chart.addEventListener(kind, ({ clientX }) => {
    const at = clientX - chart.getBoundingClientRect().left;
    const distances = curve.answer.positions.map((position) => Math.abs(curve.x(position) - at));
    moveTo(distances.indexOf(Math.min(...distances)));
  });
}
byId("curve-table").addEventListener("toggle", () => {
  if (!byId("curve-table").open) return;
  const { answer, changes, first } = curve;
  const rowOf = (reward, n) =>
    [whole(answer.positions[n]), named(answer.pieces[n]), rewardText(reward, answer.reward_stds?.[n]), n ? signed(changes[n]) : ""];
  const line = (tag, cells, more = {}) => element("tr", {}, ...cells.map((cell) => element(tag, more, cell)));
  say(byId("curve-table").querySelector(".scroll"), element("table", {},
    element("thead", {}, line("th", ["Token", "Text", "Reward", "Change"], { scope: "col" })),
    element("tbody", {}, ...answer.rewards.map(rowOf).slice(first).map((cells) => line("td", cells)))));
});

// ----------------------------------------------------------------------------------------------------------- file

const BATCHES_IN_FLIGHT = 2;
const MOST_TRIES = 8;
const MOST_SHOWN_ERRORS = 100;
const MOST_KEPT_ROWS = 2_000_000; // about 250 MB of results
const LONGEST_ROW = 8_000_000; // bytes
const BATCH = { items: 64, rows: 256, bytes: 1_000_000 };
let scoring = null; // the current run
let download = null; // the URL of the last results

/** Return whether a file begins as gzip, zip, Zstandard, bzip2 or xz do. */
function isCompressed(bytes) {
  const [gzip, zip, zstandard] = [[0x1f, 0x8b], [0x50, 0x4b, 3, 4], [0x28, 0xb5, 0x2f, 0xfd]];
  const [bzip2, xz] = [[0x42, 0x5a, 0x68], [0xfd, 0x37, 0x7a]];
  const signatures = [gzip, zip, zstandard, bzip2, xz];
  return signatures.some((signature) => signature.every((byte, n) => bytes[n] === byte));
}

/** Yield the lines of a file, as bytes, with their numbers; of a line that is too long, its length alone. */
async function* linesOf(file, state) {
  const reader = file.stream().getReader();
  let [number, parts, length] = [1, [], 0];
  const take = (bytes) => {
    length += bytes.length;
    if (length <= LONGEST_ROW) parts.push(bytes);
    else parts = [];
  };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      if (!state.bytes && isCompressed(value)) throw new Error("The file is compressed: unpack it first.");
      let start = 0;
      for (let end = value.indexOf(10); end >= 0; end = value.indexOf(10, start)) {
        take(value.subarray(start, end));
        yield { number, parts, length };
        [number, parts, length, start] = [number + 1, [], 0, end + 1];
      }
      take(value.subarray(start));
      state.bytes += value.length;
    }
    if (length) yield { number, parts, length };
  } finally {
    reader.cancel().catch(() => {}); // of a file that cannot be read, the error is raised already
  }
}

/** Join arrays of bytes. */
function joined(parts, length) {
  if (parts.length === 1) return parts[0];
  const bytes = new Uint8Array(length);
  let start = 0;
  for (const part of parts) {
    bytes.set(part, start);
    start += part.length;
  }
  return bytes;
}

/** Decode a line and read its JSON object; raise an error that says what is wrong with it. */
function readLine({ parts, length }) {
  if (length > LONGEST_ROW) throw new Error(`This row has ${whole(length)} bytes; at most ${whole(LONGEST_ROW)} are sent.`);
  let text, row;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(joined(parts, length));
  } catch {
    throw new Error("This row is not UTF-8.");
  }
  if (!text.trim()) return null;
  try {
    row = JSON.parse(text);
  } catch {
    throw new Error("This row is not JSON.");
  }
  if (row === null || typeof row !== "object" || Array.isArray(row)) throw new Error("This row is no JSON object.");
  return row;
}

const isMessage = (value) => typeof value?.role === "string";
const isMessages = (value) => Array.isArray(value) && value.length > 0 && value.every(isMessage);

/** Return the items of a row for the API: of a pair two, the chosen one first. */
function itemsOf(row, asConversation) {
  const item = (response) => {
    if (row.prompt == null) return isMessages(response) ? { messages: response } : { text: response };
    if (!asConversation || typeof row.prompt !== "string") return { prompt: row.prompt, response };
    return { prompt: [{ role: "user", content: row.prompt }], response: responseFor([], response) };
  };
  const given = { chosen: row.chosen, rejected: row.rejected, response: row.response ?? row.completion };
  const names = row.chosen != null || row.rejected != null ? ["chosen", "rejected"] : ["response"];
  if (names.length === 1 && given.response == null) {
    if (isMessages(row.messages)) return [{ messages: row.messages }];
    if (typeof row.text === "string" && row.text) return [{ text: row.text }];
    throw new Error("Expected 'prompt' with 'chosen' and 'rejected' or with 'response', or 'messages', or 'text'.");
  }
  if (names.length === 1 && row.prompt == null) throw new Error("Expected a 'prompt' beside the response.");
  const parts = [...(row.prompt == null ? [] : [["prompt", row.prompt]]), ...names.map((name) => [name, given[name]])];
  const wrong = parts.find(([, value]) => typeof value !== "string" && !isMessages(value));
  if (wrong) throw new Error(`Expected a text or messages in '${wrong[0]}'.`);
  const kinds = new Set(parts.map(([, value]) => typeof value));
  if (kinds.size > 1) throw new Error("Expected texts alone or messages alone, not both.");
  return names.map((name) => item(given[name]));
}

/** Return the form in which the items of a row are sent. */
const formOf = ([item]) => ("text" in item || typeof item.prompt === "string" ? "texts" : "conversations");

/** Yield batches of rows. Those of one batch share the keyword arguments of the chat template. */
async function* batchesOf(file, state, asConversation) {
  const empty = (keyword, index) => ({ index, rows: [], items: 0, bytes: 0, keyword });
  let batch = empty("{}", 0);
  for await (const line of linesOf(file, state)) {
    const row = { number: line.number, items: [] };
    let keyword = batch.keyword;
    try {
      const read = readLine(line);
      if (read === null) continue;
      row.items = itemsOf(read, asConversation);
      keyword = JSON.stringify({ ...(read.tools && { tools: read.tools }), ...read.chat_template_kwargs });
    } catch (error) {
      row.error = error.message;
    }
    const longer = batch.items + row.items.length > BATCH.items || batch.bytes + line.length > BATCH.bytes;
    const full = longer || batch.rows.length === BATCH.rows;
    if (batch.rows.length && (full || keyword !== batch.keyword)) {
      yield batch;
      batch = empty(keyword, batch.index + 1);
    }
    batch.keyword = keyword;
    batch.rows.push(row);
    batch.items += row.items.length;
    batch.bytes += line.length;
  }
  if (batch.rows.length) yield batch;
}

const pause = (seconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, 1000 * seconds);
  signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
});

/** Call the API, and try again when the server is full, after the time that it asks for. */
async function patiently(path, body, state) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await call(path, body, state.signal);
    } catch (failure) {
      if (![0, 429, 503].includes(failure.status) || tries === MOST_TRIES) throw failure;
      const seconds = failure.retryAfter ?? Math.min(2 ** tries, 30);
      state.waiting = `${failure.message} Trying again in ${plural(seconds, "second")}.`;
      showState(state);
      await pause(seconds, state.signal);
      state.waiting = "";
    }
  }
}

/** Score rows. Where the server refuses, the row that it names, or each half, is tried apart from the others. */
async function scoreRows(rows, keyword, state) {
  const items = rows.flatMap((row) => row.items);
  if (!items.length) return;
  try {
    const body = { ...state.settings, items, template_kwargs: JSON.parse(keyword) };
    const answer = await patiently("v1/rewards", body, state);
    let next = 0;
    for (const row of rows) {
      const [from, to] = [next, (next += row.items.length)];
      Object.assign(row, { rewards: answer.rewards.slice(from, to), stds: answer.reward_stds?.slice(from, to), tokens: answer.tokens.slice(from, to),
        truncated: answer.truncated.slice(from, to), version: answer.weight_version });
    }
  } catch (failure) {
    if (![400, 413, 422, 500].includes(failure.status)) throw failure;
    const item = /^items\[(\d+)\]/.exec(failure.param ?? "")?.[1];
    const owners = rows.flatMap((row) => row.items.map(() => row));
    const guilty = rows.length === 1 ? rows[0] : owners[item];
    if (guilty) guilty.error = failure.message.replaceAll(/items\[\d+\]/g, "this row");
    const rest = rows.filter((row) => row !== guilty);
    const middle = guilty ? rest.length : Math.ceil(rest.length / 2);
    await scoreRows(rest.slice(0, middle), keyword, state);
    await scoreRows(rest.slice(middle), keyword, state);
  }
}

/** Write the result of a row as a line of JSON. */
function resultLine({ number, error, rewards, stds, tokens, truncated, version }) {
  if (error) return JSON.stringify({ row: number, error });
  const [reward, rejected] = rewards;
  const [std, rejectedStd] = stds ?? []; // JSON has no undefined values: their names are left out
  const single = { reward, reward_std: std, tokens: tokens[0], truncated: truncated[0] };
  const pair = { chosen_reward: reward, rejected_reward: rejected, chosen_reward_std: std,
    rejected_reward_std: rejectedStd, margin: reward - rejected, tokens, truncated };
  return JSON.stringify({ row: number, ...(rewards.length === 1 ? single : pair), weight_version: version });
}

/** Add a scored batch to the sums of the run, and keep its lines for the download. */
function addBatch(batch, state) {
  for (const row of batch.rows) {
    state.rows += 1;
    if (row.error) {
      state.failed += 1;
      const problem = element("li", {}, `Row ${row.number}: ${row.error}`);
      if (state.failed <= MOST_SHOWN_ERRORS) byId("file-errors").append(problem);
      continue;
    }
    const [reward, rejected] = row.rewards;
    if (row.rewards.length === 1) state.singles.push(reward);
    else {
      state.pairs.push(reward - rejected);
      state.right += reward > rejected ? 1 : reward === rejected ? 0.5 : 0;
      state.ties += reward === rejected ? 1 : 0;
    }
    for (const std of row.stds ?? []) state.stds.push(std);
    state.forms[formOf(row.items)] += 1;
    state.tokens += sum(row.tokens);
    state.truncated += sum(row.truncated.map(Number));
    state.versions.add(row.version);
  }
  if (state.kept + batch.rows.length > MOST_KEPT_ROWS) return;
  state.kept += batch.rows.length;
  state.lines[batch.index] = batch.rows.map((row) => `${resultLine(row)}\n`).join("");
}

/** Count numbers and their sum, without keeping them. */
const tally = () => ({ count: 0, total: 0, push(number) { this.count += 1; this.total += number; } });

/** Return the 95% interval of Wilson for a share of a number of trials, rounded so that its ends reach 0 and 1. */
function wilsonInterval(share, count) {
  const weight = 1.96 ** 2 / count;
  const half = Math.sqrt(weight * share * (1 - share) + weight ** 2 / 4);
  return [-half, half].map((side) => Number(((share + weight / 2 + side) / (1 + weight)).toFixed(9)));
}

/** Say which pairs an accuracy is from, and the interval that holds it. */
function basisOfAccuracy({ right, ties, pairs: { count } }) {
  const halves = ties ? `, ${ties === 1 ? "a tie counts" : `${whole(ties)} ties count`} half` : "";
  const [low, high] = wilsonInterval(right / count, count).map(percent);
  return `${right.toLocaleString("en")} of ${plural(count, "pair")}${halves}; 95% interval ${low} to ${high}`;
}

function showState(state) {
  const { rows, failed, singles, pairs, stds, tokens, truncated, versions } = state;
  const seconds = Math.max((performance.now() - state.started) / 1000, 0.001);
  const speed = `${plural(rows, "row")} in ${seconds.toFixed(1)} s · ${whole(rows / seconds)} rows a second`;
  byId("file-progress").value = state.size ? state.bytes / state.size : 1;
  say(byId("file-state"), state.waiting || speed);
  const figures = [["Rows", whole(rows)], ["Without a reward", whole(failed)]];
  if (singles.count) figures.push(["Mean reward", decimal(singles.total / singles.count)]);
  if (pairs.count) {
    figures.push(["Accuracy", percent(state.right / pairs.count), basisOfAccuracy(state)],
      ["Mean margin", signed(pairs.total / pairs.count)]);
  }
  if (stds.count) figures.push(["Mean deviation", decimal(stds.total / stds.count), "standard deviation of a reward"]);
  figures.push(["Tokens", whole(tokens)], ["Truncated", whole(truncated)], ["Weights", [...versions].join(", ") || "none"]);
  const figure = ([name, value, basis]) => element("div", {}, element("dt", {}, name), element("dd", {}, value),
    ...(basis ? [element("dd", { class: "quiet" }, basis)] : []));
  say(byId("file-figures"), ...figures.map(figure));
  const notes = Object.entries(state.forms).filter(([, count]) => count).map(([form, count]) =>
    noteOfForm(state.model, form, `${plural(count, "row")} of ${form}`));
  say(byId("file-form-note"), notes.join(""));
  byId("file-problems").hidden = !state.failed;
  const more = state.failed - MOST_SHOWN_ERRORS;
  say(byId("file-more"), more > 0 ? `And ${plural(more, "row")} more: all are in the results.` : "");
}

function startScoring(file) {
  scoring?.control.abort();
  if (download) URL.revokeObjectURL(download);
  const control = new AbortController();
  const state = {
    control, signal: control.signal, model: model(), settings: settings(), started: performance.now(), waiting: "",
    size: file.size, bytes: 0, rows: 0, failed: 0, tokens: 0, truncated: 0, right: 0, ties: 0,
    forms: { texts: 0, conversations: 0 }, singles: tally(), pairs: tally(), stds: tally(), versions: new Set(), kept: 0, lines: [],
  };
  scoring = state;
  for (const place of [byId("file-errors"), byId("file").querySelector(".general")]) say(place, "");
  byId("file-run").hidden = false;
  byId("file-download").hidden = true;
  byId("file-cancel").hidden = false;
  say(byId("file-summary"), `Scoring ${file.name} …`);
  return scoreFile(file, state);
}

async function scoreFile(file, state) {
  const batches = batchesOf(file, state, byId("as-conversation").checked);
  let problem = null;
  const work = async () => {
    for (let next = await batches.next(); !next.done; next = await batches.next()) {
      const batch = next.value;
      await scoreRows(batch.rows.filter((row) => !row.error), batch.keyword, state);
      if (scoring !== state || state.signal.aborted) return;
      addBatch(batch, state);
      showState(state);
    }
  };
  const stop = (error) => {
    if (!state.signal.aborted) problem = error;
    state.control.abort();
  };
  await Promise.all(Array.from({ length: BATCHES_IN_FLIGHT }, () => work().catch(stop)));
  await batches.return();
  if (scoring === state) finishScoring(file, state, problem);
}

function finishScoring(file, state, problem) {
  const complete = !state.signal.aborted;
  if (complete) state.bytes = state.size;
  state.waiting = "";
  showState(state);
  byId("file-cancel").hidden = true;
  byId("file-run").hidden = Boolean(problem) && !state.rows;
  if (problem) say(byId("file").querySelector(".general"), `Scoring stopped. ${problem.message}`);
  const kept = state.kept < state.rows ? ` The download holds ${plural(state.kept, "row")}, which is the limit.` : "";
  const end = complete ? "Scored" : problem ? "Stopped in" : "Cancelled in";
  const counts = `${plural(state.rows, "row")}, ${whole(state.failed)} without a reward`;
  say(byId("file-summary"), `${end} ${file.name}: ${counts}.${kept}`);
  download = URL.createObjectURL(new Blob(state.lines.filter(Boolean), { type: "application/jsonl" }));
  const link = byId("file-download");
  link.href = download;
  link.download = `${file.name.replace(/\.\w+$/, "")}.rewards.jsonl`;
  link.hidden = !state.rows;
}

// -------------------------------------------------------------------------------------------------------- history

const HISTORY = "plaudit.history";
const MOST_ENTRIES = 50;

/** Return the kept comparisons, the latest first, or null where nothing is to be kept. */
function kept() {
  try {
    const entries = JSON.parse(localStorage.getItem(HISTORY));
    return Array.isArray(entries) ? entries : null;
  } catch {
    return null;
  }
}

/** Keep these comparisons; null switches the history off and removes all that was stored. */
function keep(entries) {
  const error = byId("history").querySelector(".general");
  try {
    if (entries) localStorage.setItem(HISTORY, JSON.stringify(entries.slice(0, MOST_ENTRIES)));
    else localStorage.removeItem(HISTORY);
    say(error, "");
  } catch {
    say(error, "The browser refuses to store more. Forget what is kept, or allow storage for this page.");
  }
  showHistory();
}

function remember(entry) {
  const entries = kept();
  if (entries) keep([entry, ...entries]);
}

function showHistory() {
  const entries = kept();
  const card = ({ time, prompt, texts, answer }) => {
    const best = answer.results[0];
    const open = () => {
      fillCompare(prompt, texts);
      showRanking(prompt, texts, answer);
      byId("compare-results").hidden = false;
      goTo("compare");
    };
    const words = typeof prompt === "string" ? prompt : prompt.map(({ content }) => content).join(" ");
    const result = `Response ${best.index + 1} was the best of ${texts.length}: ` +
      `reward ${rewardText(best.reward, best.reward_std)}`;
    return element("li", { class: "card" },
      element("div", { class: "row spread" }, element("h3", {}, new Date(time).toLocaleString()), button("Open", open)),
      passage(words),
      element("p", { class: "quiet" }, `${result} · ${answer.model}, weights ${answer.weight_version}`));
  };
  byId("keep").checked = Boolean(entries);
  byId("forget").hidden = !entries?.length;
  const count = entries && `${plural(entries.length, "comparison")} kept in this browser.`;
  say(byId("history-summary"), count ?? "History is off.");
  say(byId("entries"), ...(entries ?? []).map(card));
}

// ----------------------------------------------------------------------------------------------- tabs and the start

const tabs = [...document.querySelectorAll("[role=tab]")];

function openTab(name) {
  for (const tab of tabs) {
    const chosen = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  history.replaceState(null, "", `#${name}`);
}

/** Open a view from a button of another one: the focus moves along. */
function goTo(name) {
  openTab(name);
  byId(`tab-${name}`).focus();
}

tabs.forEach((tab, n) => {
  tab.addEventListener("click", () => openTab(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", ({ key }) => {
    const target = { ArrowLeft: n - 1, ArrowRight: (n + 1) % tabs.length, Home: 0, End: -1 }[key];
    if (target === undefined) return;
    tabs.at(target).focus();
    tabs.at(target).click();
  });
});

onSubmit(compareForm, compare);
byId("add-response").addEventListener("click", () => addResponse().focus());
byId("compare-example").addEventListener("click", () => {
  fillCompare(examplePrompt(), EXAMPLE.responses);
  compare();
});

onSubmit(curveForm, drawCurve);
byId("curve-example").addEventListener("click", () => curveOf(examplePrompt(), EXAMPLE.responses[0]));
byId("curve-response").addEventListener("input", reviewCurveResponse);
new ResizeObserver(() => {
  if (!curve || !chart.clientWidth) return;
  drawChart();
  moveTo(curve.point);
}).observe(chart);

byId("file-input").addEventListener("change", ({ target }) => {
  if (target.files[0]) startScoring(target.files[0]);
  target.value = "";
});
byId("file-cancel").addEventListener("click", () => scoring.control.abort());
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  if (!event.dataTransfer.files[0]) return;
  openTab("file");
  startScoring(event.dataTransfer.files[0]);
});

byId("keep").addEventListener("change", ({ target }) => keep(target.checked ? [] : null));
byId("forget").addEventListener("click", () => keep([]));
byId("model").addEventListener("change", showModel);

fillCompare("", ["", ""]);
showHistory();
openTab(tabs.map((tab) => tab.getAttribute("aria-controls")).find((name) => `#${name}` === location.hash) ?? "compare");
loadModels();
