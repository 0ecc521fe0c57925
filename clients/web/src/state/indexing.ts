// Index jobs: started after uploads, watched until they end.
import { ConnectError } from "@connectrpc/connect";

import { knowledge } from "../api/clients";
import { failureOf } from "../api/failure";
import { newId } from "../api/id";
import { datasets, indexErrors, loadDatasets, loadDocuments, progress } from "./knowledge";

const POLL_MS = 500;
const POLL_SLOWLY_MS = 2000;
const POLL_QUICKLY_TIMES = 20;
/** Polls in a row that may fail before the watch gives up. */
const MAX_FAILURES = 10;

const watched = new Map<string, { again: boolean; ended: Promise<string> }>();

/** Indexes what is not indexed yet. Settles with the dataset's status, "ready" or "failed". Throws `ConnectError`. */
export function prepare(datasetId: string): Promise<string> {
  const running = watched.get(datasetId);
  if (running) {
    running.again = true; // its job may have passed what was added since
    return running.ended;
  }
  return watch(datasetId, true);
}

/** Goes on watching the jobs that run, after a reload. */
export function watchRunning(): void {
  for (const { datasetId, status } of datasets.value ?? []) {
    if (status === "indexing" && !watched.has(datasetId)) watch(datasetId, false).catch(() => undefined);
  }
}

function watch(datasetId: string, start: boolean): Promise<string> {
  const state = { again: start, ended: Promise.resolve("") };
  watched.set(datasetId, state);
  state.ended = run(datasetId, state).finally(() => {
    watched.delete(datasetId);
    const { [datasetId]: _ended, ...others } = progress.value;
    progress.value = others;
    void loadDatasets();
    loadDocuments(datasetId).catch(() => undefined);
  });
  return state.ended;
}

async function run(datasetId: string, state: { again: boolean }): Promise<string> {
  let status = "";
  do {
    if (state.again) await build(datasetId);
    state.again = false;
    status = await untilEnded(datasetId);
  } while (state.again);
  return status;
}

async function build(datasetId: string): Promise<void> {
  progress.value = { ...progress.value, [datasetId]: 0 };
  try {
    await knowledge.buildIndex({ datasetId, indexType: "vector", requestId: newId() });
  } catch (error) {
    if (failureOf(error).reason !== "INDEX_RUNNING") throw error;
  }
}

async function untilEnded(datasetId: string): Promise<string> {
  let failures = 0;
  for (let polls = 0; ; polls += 1) {
    await new Promise((resolve) => setTimeout(resolve, polls < POLL_QUICKLY_TIMES ? POLL_MS : POLL_SLOWLY_MS));
    try {
      const answer = await knowledge.getStatus({ datasetId });
      failures = 0;
      progress.value = { ...progress.value, [datasetId]: answer.progress ?? 0 };
      indexErrors.value = { ...indexErrors.value, [datasetId]: answer.errors };
      if (answer.status === "ready" || answer.status === "failed") return answer.status;
    } catch (error) {
      failures += 1;
      if (failures === MAX_FAILURES || failureOf(error).reason !== "LOST") throw ConnectError.from(error);
    }
  }
}
