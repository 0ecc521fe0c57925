// Adding, preparing, listing, choosing and deleting documents, against a mesh of the test's own.
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import type { Page } from "playwright-core";

import { answer, send } from "./browser";
import { newWorld } from "./setup";

const world = newWorld();
let page: Page;
beforeEach(async () => {
  page = await world.visit();
});

const file = (name: string, text: string) => ({ name, mimeType: "text/plain", buffer: Buffer.from(text) });

async function choose(button: string, ...files: ReturnType<typeof file>[]): Promise<void> {
  const [chooser] = await Promise.all([
    page.waitForEvent("filechooser"),
    page.getByRole("button", { name: button, exact: true }).first().click(),
  ]);
  await chooser.setFiles(files);
}

test("chosen files are stored, prepared and said to be ready; a bad one is named with its reason", async () => {
  await choose("Choose files", file("手册.txt", "二十五天"), file("empty.txt", ""));
  await page.getByText("This file is empty.").waitFor();
  await page.getByText("Ready: ask about it").waitFor();
  assert.deepEqual([...world.mesh.datasets.keys()], ["documents"]);
  assert.deepEqual(world.mesh.calls, ["BuildIndex documents"]);
  await page.getByText("Your documents are ready to be asked.").waitFor();
  await page.getByRole("button", { name: "What does “手册.txt” say?" }).waitFor();
  await choose("Add files", file("手册.txt", "二十五天"));
  await page.getByText("Already there").waitFor();
  await page.getByRole("button", { name: "Clear the list" }).click();
  assert.equal(await page.getByText("Already there").count(), 0);
});

test("a question clears what is ready from the list, and leaves what was refused", async () => {
  await choose("Choose files", file("a.txt", "a"), file("empty.txt", ""));
  await page.getByText("Ready: ask about it").waitFor();
  await send(page, "What is in it?");
  await answer(page).waitFor();
  assert.equal(await page.getByText("Ready: ask about it").count(), 0);
  await page.getByText("This file is empty.").waitFor();
});

test("files dropped anywhere are taken", async () => {
  const data = await page.evaluateHandle(() => {
    const transfer = new DataTransfer();
    transfer.items.add(new File(["words"], "dropped.md"));
    return transfer;
  });
  await page.dispatchEvent("main", "dragenter", { dataTransfer: data });
  await page.getByText("Drop to add these files").waitFor();
  await page.dispatchEvent("main", "drop", { dataTransfer: data });
  await page.getByText("dropped.md").first().waitFor();
  await page.getByText("Ready: ask about it").waitFor();
  assert.equal(await page.getByText("Drop to add these files").count(), 0);
});

test("a collection is made, filled, searched alone, and deleted", async () => {
  await choose("Choose files", file("a.txt", "a"));
  await page.getByText("Ready: ask about it").waitFor();
  await page.getByRole("link", { name: "Documents" }).first().click();
  await page.getByRole("button", { name: "New collection" }).click();
  await page.getByRole("dialog").getByLabel("Name").fill("Contracts");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Contracts" }).waitFor();
  await page.getByText("This collection is empty.").waitFor();
  await choose("Add files", file("b.txt", "b"));
  await page.getByRole("listitem").filter({ hasText: "b.txt" }).getByText("Ready", { exact: false }).first().waitFor();
  assert(world.mesh.calls.includes("BuildIndex ds_1"));

  await page.getByRole("link", { name: "New chat" }).first().click();
  await page.getByRole("button", { name: "Search in: All documents" }).click();
  await page.getByRole("dialog").getByLabel("Contracts").check();
  await page.getByRole("dialog").getByRole("button", { name: "Done" }).click();
  await send(page, "Only there?");
  await answer(page).waitFor();
  assert.deepEqual([...world.mesh.turns.values()][0]?.request.datasetIds, ["ds_1"]);

  await page.getByRole("link", { name: "Documents" }).first().click();
  await page.getByRole("button", { name: "Delete the collection “Contracts”" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await page.getByRole("heading", { name: "Contracts" }).waitFor({ state: "detached" });
  await page.getByRole("link", { name: "New chat" }).first().click();
  await send(page, "Everywhere?");
  await answer(page).waitFor();
  assert.deepEqual([...world.mesh.turns.values()][1]?.request.datasetIds, [], "a deleted collection is not searched");
});

test("a document is deleted after a question back", async () => {
  await choose("Choose files", file("a.txt", "a"), file("b.txt", "b"));
  await page.getByText("Ready: ask about it").nth(1).waitFor();
  await page.getByRole("link", { name: "Documents" }).first().click();
  await page.getByRole("button", { name: "Delete “a.txt”" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await page.getByRole("button", { name: "Delete “a.txt”" }).waitFor({ state: "detached" });
  assert.deepEqual(
    world.mesh.datasets.get("documents")?.documents.map((one) => one.name),
    ["b.txt"],
  );
});

test("an index job that runs is watched after a reload", async () => {
  world.mesh.datasets.set("documents", {
    name: "",
    status: "indexing",
    progress: -2,
    documents: [{ documentId: "d", name: "a.pdf", bytes: 9, status: "stored" }],
  });
  await page.goto(`${world.url}/#/documents`);
  await page.reload();
  await page.getByText("Being prepared").waitFor();
  await page.getByText("1 document · 12 passages · Ready").waitFor();
});
