// A browser, a fresh mesh and fresh pages for each test of a file; what must not happen is checked after each.
import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach } from "node:test";

import type { Browser, BrowserContextOptions, Page } from "playwright-core";

import { launch, open, type Watched } from "./browser";
import { FakeMesh } from "./fake";

export interface World {
  mesh: FakeMesh;
  url: string;
  visit(options?: BrowserContextOptions): Promise<Page>;
}

/** Call once, at the top of a test file. */
export function newWorld(): World {
  let browser: Browser;
  const views: Watched[] = [];
  const world: World = {
    mesh: new FakeMesh(),
    url: "",
    visit: async (options = {}) => {
      const view = await open(browser, world.url, options);
      views.push(view);
      return view.page;
    },
  };
  before(async () => {
    browser = await launch();
  });
  after(() => browser.close());
  beforeEach(async () => {
    world.mesh = new FakeMesh();
    world.url = await world.mesh.start();
  });
  afterEach(async () => {
    for (const view of views.splice(0)) {
      await view.page.context().close();
      assert.deepEqual(view.faults, []);
      assert.deepEqual(view.foreign, []);
    }
    await world.mesh.stop();
  });
  return world;
}

/** Waits for what the page does not show. */
export async function until(what: () => boolean | Promise<boolean>): Promise<void> {
  for (let tries = 0; tries < 300; tries += 1) {
    if (await what()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.fail("did not happen");
}

export const REFERENCES = [
  {
    id: 1,
    datasetId: "documents",
    documentId: "d1",
    name: "Handbook.pdf",
    page: 12,
    heading: "Leave",
    content: "25 working days.",
    score: 0.9,
  },
  {
    id: 2,
    datasetId: "documents",
    documentId: "d2",
    name: "员工手册.docx",
    heading: "第三章",
    content: "二十五个工作日",
    score: 0.8,
  },
];
