"use strict";

const LAST = 12; // images that this browser remembers
const KEY = "imagelabs-images";
const $ = (id) => document.getElementById(id);
let current = null; // the task that is waited for

function remembered() {
  try {
    const items = JSON.parse(localStorage.getItem(KEY) || "[]");
    return Array.isArray(items) ? items : [];
  } catch {
    return [];
  }
}

function remember(items) {
  try {
    localStorage.setItem(KEY, JSON.stringify(items.slice(0, LAST)));
  } catch {
    // a browser may forbid it: then the images last as long as the page
  }
}

async function post(path, body, headers) {
  const token = $("token").value.trim();
  return fetch(path, {
    method: "POST",
    headers: {
      "content-type": "application/json",
      ...(token ? { authorization: "Bearer " + token } : {}),
      ...headers,
    },
    body: JSON.stringify(body),
  });
}

async function failure(response) {
  if (response.status === 401) {
    $("token-field").hidden = false;
    $("token").focus();
    return "This server asks for a token.";
  }
  const words = await response.json().then((answer) => answer.error, () => "");
  return words || "The server answered " + response.status + ".";
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

function say(words, fraction) {
  $("status").textContent = words;
  $("bar").hidden = fraction === undefined;
  $("bar").value = fraction || 0;
}

function show(url, words, again) {
  $("stage").hidden = false;
  $("image").src = url;
  $("image").alt = words;
  $("caption").textContent = words;
  $("again").hidden = !again;
  $("again").onclick = again;
}

function list() {
  const items = remembered();
  $("none").hidden = items.length > 0;
  $("latest").replaceChildren(
    ...items.map((item) => {
      const button = document.createElement("button");
      const image = document.createElement("img");
      const words = document.createElement("span");
      image.src = item.url;
      image.alt = item.prompt;
      image.loading = "lazy";
      image.onerror = () => remove(item.url);
      words.textContent = item.prompt;
      button.type = "button";
      button.append(image, words);
      button.onclick = () => show(item.url, caption(item), () => again(item));
      const entry = document.createElement("li");
      entry.append(button);
      return entry;
    }),
  );
}

function remove(url) {
  remember(remembered().filter((item) => item.url !== url));
  list();
}

const caption = (item) => item.prompt + " · seed " + item.seed;

function again(item) {
  $("prompt").value = item.prompt;
  $("size").value = item.size;
  $("seed").value = "";
  generate();
}

function busy(is) {
  $("go").disabled = is;
  $("cancel").hidden = !is;
}

async function generate() {
  const [width, height] = $("size").value.split("x").map(Number);
  const seed = $("seed").value.trim() || String(Math.floor(1e9 + Math.random() * 3e9));
  const item = { prompt: $("prompt").value.trim(), seed, size: $("size").value };
  if (!item.prompt) return;
  busy(true);
  say("Asking …", 0);
  try {
    const response = await post("txt2img", { prompt: item.prompt, seed, width, height });
    if (!response.ok) throw new Error(await failure(response));
    current = (await response.json()).task_id;
    await follow(current, item);
  } catch (error) {
    say(error.message);
  } finally {
    current = null;
    busy(false);
  }
}

async function follow(task, item) {
  let etag = "";
  for (let failures = 0; failures < 5; ) {
    let response;
    try {
      const headers = { prefer: "wait=20, progress", ...(etag ? { "if-none-match": etag } : {}) };
      response = await post("progress", { task_id: task }, headers);
    } catch {
      failures += 1;
      await pause(failures);
      continue;
    }
    if (!response.ok) {
      if (response.status < 500 && response.status !== 429) throw new Error(await failure(response));
      failures += 1;
      await pause(failures);
      continue;
    }
    failures = 0;
    etag = response.headers.get("etag") || "";
    const answer = await response.json();
    if (answer.final_image_url) return finish(answer, item);
    if (/^(error|cancelled)/i.test(answer.status)) throw new Error(answer.status);
    say(answer.status, answer.progress);
    if (answer.current_image_url) show(answer.current_image_url, item.prompt, null);
    if (!response.headers.get("preference-applied")) await pause(0.5);
  }
  throw new Error("The server cannot be reached.");
}

function finish(answer, item) {
  const done = { ...item, url: answer.final_image_url };
  say("Done.");
  show(done.url, caption(done), () => again(done));
  remember([done, ...remembered()]);
  list();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
$("cancel").addEventListener("click", () => {
  if (current) post("cancel", { task_id: current });
});
list();
