// Files from a person: chosen, dropped (folders too) or pasted.
import { signal } from "@preact/signals";

import { route } from "../state/route";
import { addFiles } from "../state/uploads";

const FORMATS = ".pdf,.docx,.pptx,.xlsx,.html,.htm,.md,.markdown,.txt,.csv";
/** Most files taken from dropped folders. */
const MAX_FILES = 1000;

/** Files are being dragged over the page. */
export const dragging = signal(false);

/** The dataset that new files go into: the one that is looked at, else the default one. */
export function target(): string | undefined {
  return route.value.view === "documents" && route.value.id ? route.value.id : undefined;
}

export function pickFiles(datasetId = target()): void {
  const input = document.createElement("input");
  input.type = "file";
  input.multiple = true;
  input.accept = FORMATS;
  input.onchange = () => addFiles(input.files ?? [], datasetId);
  input.click();
}

/** Takes files that are dropped anywhere on the page or pasted into it. */
export function takeDrops(): void {
  let depth = 0; // dragenter and dragleave come for every element on the way
  const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
  addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth += 1;
    dragging.value = true;
  });
  addEventListener("dragleave", (event) => {
    if (!hasFiles(event)) return;
    depth -= 1;
    if (depth === 0) dragging.value = false;
  });
  addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    depth = 0;
    dragging.value = false;
    if (!hasFiles(event) || !event.dataTransfer) return;
    event.preventDefault();
    const datasetId = target();
    void droppedFiles(event.dataTransfer).then((files) => addFiles(files, datasetId));
  });
  addEventListener("paste", (event) => {
    const files = event.clipboardData?.files;
    if (!files?.length) return;
    event.preventDefault();
    addFiles(files, target());
  });
}

async function droppedFiles(data: DataTransfer): Promise<File[]> {
  // Entries must be asked for before the first await: the list is emptied after the event.
  const entries = [...data.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  if (entries.every((entry) => entry.isFile)) return [...data.files];
  const found: File[] = [];
  await Promise.all(entries.map((entry) => walk(entry, found)));
  return found;
}

async function walk(entry: FileSystemEntry, found: File[]): Promise<void> {
  if (found.length >= MAX_FILES || entry.name.startsWith(".")) return;
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    if (found.length < MAX_FILES) found.push(file);
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  for (;;) {
    const batch = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (batch.length === 0) return;
    for (const child of batch) await walk(child, found);
  }
}
