// Datasets ("collections" to people) and their documents.
import { signal } from "@preact/signals";

import { knowledge } from "../api/clients";
import { failureOf, type Failure } from "../api/failure";
import { newId } from "../api/id";
import type { Dataset, Document, IndexError } from "../gen/weft/v1/knowledge_pb";
import type { Words } from "../words";
import { keepChosen } from "./search";

export const DEFAULT_DATASET = "documents";
const PAGE_SIZE = 100;
/** Most datasets that the page lists: 10 pages. */
const MAX_DATASETS = 1000;

export const datasets = signal<readonly Dataset[] | null>(null);
export const datasetsFailure = signal<Failure | null>(null);

export interface DocumentList {
  items: readonly Document[];
  nextPage: string;
}
/** By dataset id; those that were opened. */
export const documents = signal<Readonly<Record<string, DocumentList>>>({});

/** How far an index job is: share from 0 to 1. By dataset id; those that run. */
export const progress = signal<Readonly<Record<string, number>>>({});
/** What could not be indexed, by dataset id. */
export const indexErrors = signal<Readonly<Record<string, readonly IndexError[]>>>({});

export function datasetName(dataset: Pick<Dataset, "datasetId" | "name">, words: Words): string {
  const plain = dataset.name || dataset.datasetId;
  return plain === DEFAULT_DATASET ? words.defaultDataset : plain;
}

export async function loadDatasets(): Promise<void> {
  try {
    const all: Dataset[] = [];
    let pageToken = "";
    do {
      const page = await knowledge.listDatasets({ pageSize: PAGE_SIZE, pageToken });
      all.push(...page.datasets);
      pageToken = page.nextPageToken;
    } while (pageToken && all.length < MAX_DATASETS);
    datasets.value = all;
    datasetsFailure.value = null;
    if (!pageToken) keepChosen(all.map((dataset) => dataset.datasetId));
  } catch (error) {
    datasetsFailure.value = failureOf(error);
  }
}

/** Reads the documents of a dataset: from the start as many as are shown, or one page more. */
export async function loadDocuments(datasetId: string, more = false): Promise<void> {
  const shown = documents.value[datasetId];
  const items: Document[] = more && shown ? [...shown.items] : [];
  const want = more ? items.length + 1 : (shown?.items.length ?? 1);
  let pageToken = more ? (shown?.nextPage ?? "") : "";
  do {
    const page = await knowledge.listDocuments({ datasetId, pageSize: PAGE_SIZE, pageToken });
    items.push(...page.documents);
    pageToken = page.nextPageToken;
  } while (pageToken && items.length < want);
  documents.value = { ...documents.value, [datasetId]: { items, nextPage: pageToken } };
}

export async function createDataset(name: string): Promise<string> {
  const made = await knowledge.createDataset({ name, requestId: newId() });
  await loadDatasets();
  return made.datasetId;
}

export async function deleteDataset(datasetId: string): Promise<void> {
  await knowledge.deleteDataset({ datasetId });
  const { [datasetId]: _gone, ...others } = documents.value;
  documents.value = others;
  await loadDatasets();
}

export async function deleteDocument(datasetId: string, documentId: string): Promise<void> {
  await knowledge.deleteDocument({ datasetId, documentId });
  await Promise.all([loadDocuments(datasetId), loadDatasets()]);
}
