// Draws the picture of the page for the README: node --import tsx tests/picture.ts FILE
import { answer, launch, open, send } from "./browser";
import { FakeMesh } from "./fake";

const HANDBOOK = {
  id: 1,
  datasetId: "documents",
  documentId: "d1",
  name: "Employee handbook 2026.pdf",
  page: 12,
  heading: "4.2 Annual leave",
  content: "Every full-time employee is entitled to 25 working days of paid annual leave per calendar year.",
};
const CHINESE = { ...HANDBOOK, id: 2, documentId: "d2", name: "员工手册.docx", page: 8, heading: "第三章 休假" };

const mesh = new FakeMesh();
mesh.scripts.set("How many days of annual leave do I have?", [
  {
    type: "delta",
    content:
      "Full-time employees have **25 working days** of paid annual leave per calendar year [1]. " +
      "Leave that is not taken by 31 December may be carried over until 31 March [1][2].",
  },
  { type: "refs", references: [HANDBOOK, CHINESE] },
  { type: "done" },
]);
mesh.scripts.set("申请年假要提前多久？", [
  { type: "delta", content: "年假申请须**提前两周**提交 [1]：\n\n1. 在系统中填写申请\n2. 由直属主管确认 [1]" },
  { type: "refs", references: [{ ...CHINESE, id: 1 }] },
  { type: "done" },
]);

const file = process.argv[2];
if (!file) throw new Error("Name the file to write, as in: node --import tsx tests/picture.ts page.png");
const url = await mesh.start();
const browser = await launch();
const { page } = await open(browser, url, { viewport: { width: 1200, height: 860 }, reducedMotion: "reduce" });
const rated = page.getByRole("button", { name: "Good answer" });
await send(page, "How many days of annual leave do I have?");
await rated.waitFor();
await send(page, "申请年假要提前多久？");
await rated.nth(1).waitFor();
await answer(page).waitFor();
await page.screenshot({ path: file });
await browser.close();
await mesh.stop();
