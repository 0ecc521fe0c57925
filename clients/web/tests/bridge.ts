// The page's own client in Chromium, for tests that are written elsewhere:
//
//     node --import tsx tests/bridge.ts http://127.0.0.1:8080
//
// Each line of standard input is a command, each line of standard output what was heard of a call, as JSON.
// A client is a tab with a token of its own, on the mesh's own origin.
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import type { Browser, Page } from "playwright-core";
import { build } from "vite";

import { launch } from "./browser";
import type { Call } from "./bridge_client";

type Command =
  | { do: "open"; client: string; token: string }
  | ({ do: "begin"; client: string } & Call)
  | { do: "abort"; client: string; call: string }
  | { do: "close"; client: string };

const url = process.argv[2] ?? "";
const tabs = new Map<string, Promise<Page>>();
const say = (what: object) => process.stdout.write(`${JSON.stringify(what)}\n`);

async function bundle(): Promise<string> {
  const entry = fileURLToPath(new URL("./bridge_client.ts", import.meta.url));
  const lib = { entry, formats: ["iife" as const], name: "bridge" };
  const built = await build({ configFile: false, logLevel: "error", build: { write: false, lib } });
  const [first] = Array.isArray(built) ? built : [];
  if (!first) throw new Error("Vite made nothing.");
  return first.output[0].code;
}

async function tab(browser: Browser, script: string, token: string): Promise<Page> {
  const page = await browser.newPage();
  await page.exposeFunction("tell", say);
  // An empty document of the mesh's origin; from then on every request goes to the mesh itself.
  await page.route(`${url}/`, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html>" }));
  await page.goto(`${url}/`);
  await page.unrouteAll();
  await page.evaluate((value) => sessionStorage.setItem("weft.token", value), token);
  await page.evaluate(script);
  return page;
}

/** The commands of a client follow each other. */
async function carryOut(command: Command, opening: Promise<Page> | undefined): Promise<Page> {
  const page = await opening;
  if (!page) throw new Error("The first command of a client opens it.");
  if (command.do === "begin") await page.evaluate((call) => window.begin(call), command);
  if (command.do === "abort") await page.evaluate((call) => window.abort(call), command.call);
  if (command.do === "close") await page.close();
  return page;
}

const [browser, script] = await Promise.all([launch(), bundle()]);
say({ ready: true });
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line) as Command;
  const { client } = command;
  if (command.do === "open") tabs.set(client, tab(browser, script, command.token));
  else tabs.set(client, carryOut(command, tabs.get(client)));
}
await browser.close();
