// The upload of one file as a multipart form: XMLHttpRequest, since fetch tells no upload progress.
import { fromJson, type JsonValue } from "@bufbuild/protobuf";

import { UploadResponseSchema, type UploadedDocument } from "../gen/weft/v1/knowledge_pb";
import type { Reason } from "../words";
import type { Failure } from "./failure";
import { newId } from "./id";
import { accessToken, refuseToken } from "./token";
import { traceparent } from "./trace";

export class UploadError extends Error {
  constructor(readonly failure: Failure) {
    super(failure.message);
  }
}

interface Answer {
  status: number;
  body: JsonValue;
}

/**
 * Sends `file` into `datasetId`; `progress` hears shares from 0 to 1. Throws `UploadError`, and
 * the signal's reason when aborted.
 */
export async function upload(
  datasetId: string,
  file: File,
  progress: (share: number) => void,
  signal: AbortSignal,
): Promise<UploadedDocument> {
  let token = await accessToken();
  let answer = await send(token, datasetId, file, progress, signal);
  if (answer.status === 401) {
    refuseToken(token);
    token = await accessToken();
    answer = await send(token, datasetId, file, progress, signal);
  }
  if (answer.status !== 200) throw new UploadError(refusal(answer));
  const document = fromJson(UploadResponseSchema, answer.body, { ignoreUnknownFields: true }).documents[0];
  if (!document) throw new UploadError({ reason: "UPLOAD_MALFORMED", message: "" });
  return document;
}

function send(
  token: string,
  datasetId: string,
  file: File,
  progress: (share: number) => void,
  signal: AbortSignal,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const form = new FormData();
    form.append("dataset_id", datasetId);
    form.append("file", file, file.name);
    const request = new XMLHttpRequest();
    request.open("POST", "/api/v1/knowledge/upload");
    request.setRequestHeader("authorization", `Bearer ${token}`);
    const requestId = newId();
    request.setRequestHeader("x-request-id", requestId);
    request.setRequestHeader("traceparent", traceparent(requestId));
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onload = () => resolve({ status: request.status, body: parse(request.responseText) });
    request.onerror = () => reject(new UploadError({ reason: "LOST", message: "" }));
    request.onabort = () => reject(signal.reason as Error);
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(form);
  });
}

function parse(text: string): JsonValue {
  try {
    return JSON.parse(text) as JsonValue;
  } catch {
    return null;
  }
}

/** Reads a `google.rpc.Status` as REST prints it. */
function refusal(answer: Answer): Failure {
  if (answer.status === 413) return { reason: "DOCUMENT_TOO_LARGE", message: "" };
  if (answer.status === 429) return { reason: "OVERLOADED", message: "" };
  const status = answer.body as {
    message?: string;
    details?: { reason?: string; metadata?: { role?: string } }[];
  } | null;
  const info = status?.details?.find((detail) => detail.reason);
  const failure: Failure = { reason: (info?.reason ?? "") as Reason, message: status?.message ?? "" };
  const role = info?.metadata?.role;
  return role ? { ...failure, role } : failure;
}
