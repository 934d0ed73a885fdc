"""Predict rows with transformers alone, in as few lines as possible, for `llmft bench cold-start`.

python plain_predict.py MODEL_FOLDER ROWS.jsonl
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder, path = sys.argv[1:]
rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
texts = [f"{row['title']}\n\n{row['content']}" for row in rows]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
inputs = tokenizer(texts, padding=True, truncation=True, max_length=384, return_tensors="pt")
with torch.inference_mode():
    scores = model(**inputs).logits
for row_scores in scores.tolist():
    sys.stdout.write(f"{json.dumps(row_scores)}\n")
