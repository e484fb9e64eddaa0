// Counts the characters of texts that have a limit.
for (const field of document.querySelectorAll("textarea[maxlength]")) {
  const count = document.createElement("output");
  count.className = "imagelabs-count";
  count.dir = "ltr";
  const show = () => { count.value = `${field.value.length} / ${field.maxLength}`; };
  field.addEventListener("input", show);
  field.after(count);
  show();
}
