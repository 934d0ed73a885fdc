"""Small files that load; each test changes one thing in them."""

CLASS_TASK = """\
name: news
sources: [{path: rows.jsonl}]
labels: {type: class, from: mood}
output: prepared
"""

SCORES_TASK = """\
name: risk
sources: [{path: rows.jsonl}]
labels: {type: scores, from: scores, dimensions: [risk, calm], range: [0, 10]}
output: prepared
"""

MULTILABEL_TASK = """\
name: topics
sources: [{path: rows.jsonl}]
labels: {type: multilabel, from: [sport, music]}
output: prepared
"""

RECIPE = """\
name: variant
task: task.yaml
base: {model: builtin:minilm}
head: {type: regression}
output_dir: runs/variant
"""

SUITE = """\
task: task.yaml
variants: {small: runs/small, large: runs/large}
reference: small
metric: mae
margin: 0.1
output_dir: reports/risk
"""
