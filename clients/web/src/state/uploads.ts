// Files on their way into a dataset: one after the other, then the index job.
import { signal, type Signal } from "@preact/signals";

import { failureOf, type Failure } from "../api/failure";
import { upload, UploadError } from "../api/upload";
import { prepare } from "./indexing";
import { DEFAULT_DATASET, documents, indexErrors, loadDatasets, loadDocuments } from "./knowledge";

/** `percent` in "uploading"; `failure` in "refused". "stored": being indexed, or waiting for it. */
export interface UploadState {
  step: "waiting" | "uploading" | "stored" | "duplicate" | "ready" | "refused" | "cancelled";
  percent: number;
  failure: Failure | null;
}

export interface Upload {
  readonly name: string;
  readonly datasetId: string;
  readonly state: Signal<UploadState>;
  readonly stopping: AbortController;
}

const waiting: { file: File; upload: Upload }[] = [];
let busy = false;

export const uploads = signal<readonly Upload[]>([]);

export function addFiles(files: Iterable<File>, datasetId = DEFAULT_DATASET): void {
  const added = [...files].map((file) => {
    const state = signal<UploadState>({ step: "waiting", percent: 0, failure: null });
    return { file, upload: { name: file.name, datasetId, state, stopping: new AbortController() } };
  });
  waiting.push(...added);
  uploads.value = [...uploads.value, ...added.map((one) => one.upload)];
  if (!busy) void work();
}

export function cancelUpload(one: Upload): void {
  one.stopping.abort();
  if (one.state.value.step === "waiting") set(one, { step: "cancelled" });
}

const UNDER_WAY = ["waiting", "uploading", "stored"];
export const underWay = (one: Upload): boolean => UNDER_WAY.includes(one.state.value.step);

export function clearUploads(): void {
  uploads.value = uploads.value.filter(underWay);
}

/** Once a question is asked, only what still needs attention stays in view. */
export function clearReady(): void {
  uploads.value = uploads.value.filter((one) => underWay(one) || one.state.value.step === "refused");
}

function set(one: Upload, change: Partial<UploadState>): void {
  one.state.value = { ...one.state.value, ...change };
}

async function work(): Promise<void> {
  busy = true;
  const stored = new Map<string, Map<string, Upload>>(); // by dataset, by document
  for (let next = waiting.shift(); next; next = waiting.shift()) {
    const documentId = await sendOne(next.file, next.upload);
    const { datasetId } = next.upload;
    if (!documentId) continue;
    if (!stored.has(datasetId)) stored.set(datasetId, new Map());
    stored.get(datasetId)?.set(documentId, next.upload);
  }
  busy = false;
  void loadDatasets();
  await Promise.all([...stored].map(([datasetId, files]) => index(datasetId, files)));
}

/** The id of the document, where it is stored now. */
async function sendOne(file: File, one: Upload): Promise<string> {
  if (one.stopping.signal.aborted) return "";
  set(one, { step: "uploading" });
  try {
    const progress = (share: number) => set(one, { percent: Math.floor(share * 100) });
    const document = await upload(one.datasetId, file, progress, one.stopping.signal);
    if (document.status === "refused") {
      const failure: Failure = {
        reason: (document.error?.reason ?? "") as Failure["reason"],
        message: document.error?.message ?? "",
      };
      set(one, { step: "refused", failure });
      return "";
    }
    // A duplicate may have been stored by an upload whose index job never came: indexed all the same.
    set(one, { step: document.status === "duplicate" ? "duplicate" : "stored" });
    return document.documentId;
  } catch (error) {
    if (one.stopping.signal.aborted) set(one, { step: "cancelled" });
    else set(one, { step: "refused", failure: error instanceof UploadError ? error.failure : failureOf(error) });
    return "";
  }
}

async function index(datasetId: string, files: Map<string, Upload>): Promise<void> {
  if (documents.value[datasetId]) loadDocuments(datasetId).catch(() => undefined);
  try {
    await prepare(datasetId);
    const refused = new Map(indexErrors.value[datasetId]?.map((error) => [error.documentId, error]));
    for (const [documentId, one] of files) {
      const error = refused.get(documentId);
      if (!error) set(one, { step: one.state.value.step === "duplicate" ? "duplicate" : "ready" });
      else
        set(one, { step: "refused", failure: { reason: error.reason as Failure["reason"], message: error.message } });
    }
  } catch (error) {
    for (const one of files.values()) set(one, { step: "refused", failure: failureOf(error) });
  }
}
