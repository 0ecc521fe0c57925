// What went wrong, as the page keeps and explains it.
import { Code, ConnectError } from "@connectrpc/connect";

import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb";
import type { Reason, Words } from "../words";

export interface Failure {
  /** Name of an `ErrorReason`; "LOST" where the mesh could not be reached; else empty. */
  reason: Reason | "LOST" | "";
  /** The server's own words, for people. */
  message: string;
  /** The role that was missing, with ROLE_MISSING. */
  role?: string;
}

/** Codes that a broken connection and a vanished server show as. */
const LOST = [Code.Unknown, Code.Internal, Code.Unavailable, Code.Aborted, Code.DataLoss, Code.Canceled];

export function failureOf(error: unknown): Failure {
  const known = ConnectError.from(error);
  const info = known.findDetails(ErrorInfoSchema).find((detail) => detail.domain === "weft");
  if (info) {
    const failure: Failure = { reason: info.reason as Reason, message: known.rawMessage };
    const role = info.metadata["role"];
    return role ? { ...failure, role } : failure;
  }
  if (known.code === Code.Unauthenticated) return { reason: "TOKEN_INVALID", message: known.rawMessage };
  if (known.code === Code.ResourceExhausted) return { reason: "OVERLOADED", message: known.rawMessage };
  if (known.code === Code.DeadlineExceeded) return { reason: "DEADLINE_EXCEEDED", message: known.rawMessage };
  return { reason: LOST.includes(known.code) ? "LOST" : "", message: known.rawMessage };
}

/** The failure in plain words. */
export function explain(failure: Failure, words: Words): string {
  if (failure.reason === "LOST") return words.offline;
  if (failure.reason === "ROLE_MISSING" && failure.role) return words.needsRole(failure.role);
  const known = failure.reason ? words.reasons[failure.reason] : undefined;
  return known ?? (failure.message || words.somethingWrong);
}
