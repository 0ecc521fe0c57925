import { effect } from "@preact/signals";
import { render } from "preact";

import { App } from "./app";
import { goOn } from "./state/chat";
import { refreshConversations } from "./state/conversations";
import { watchRunning } from "./state/indexing";
import { datasets, loadDatasets, loadDocuments } from "./state/knowledge";
import { loadModels } from "./state/search";
import { underWay, uploads } from "./state/uploads";
import "./style.css";
import { takeDrops } from "./ui/pick";

async function start(): Promise<void> {
  const root = document.getElementById("app");
  if (root) render(<App />, root);
  takeDrops();
  addEventListener("beforeunload", (event) => {
    if (uploads.value.some((one) => underWay(one) && one.state.value.step !== "stored")) event.preventDefault();
  });
  goOn();
  effect(watchRunning);
  void refreshConversations();
  void loadModels();
  await loadDatasets();
  const newest = datasets.value?.[0]; // its documents give the first screen its examples
  if (newest) await loadDocuments(newest.datasetId).catch(() => undefined);
}

void start();
