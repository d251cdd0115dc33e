# %% [markdown]
# # At what age?
#
# A condition appears at some age, in a thousand hospitals, and no hospital may show a record. This notebook asks them
# all the same, under six models of whom they trust, and compares what comes back with the truth, which a simulation
# knows. A CPU is enough.

# %%
# %pip install -q "fedjx[privacy]"
# %matplotlib inline

# %% [markdown]
# ## A thousand hospitals
#
# Made up, and plausible: 800 small hospitals with a few cases, 200 large ones with about a hundred. The condition has
# an early form, which women have more often, and a late one. Every hospital is a little different from the others.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import fedjx

rng = np.random.default_rng(7)
SIZES = [(800, 5, 8), (200, 65, 128)]  # so many hospitals have so many cases, from and to


def hospital(fewest, most):
    size = rng.integers(fewest, most + 1)
    sex = rng.integers(0, 2, size)  # 0 for women
    early = rng.random(size) < np.where(sex == 0, 0.45, 0.15)
    age = np.where(early, rng.normal(31, 6, size), rng.normal(64, 10, size)) + rng.normal(0, 3)
    return {"age": age.clip(0, 99).astype(np.float32), "sex": sex.astype(np.int32)}


hospitals = [hospital(low, high) for number, low, high in SIZES for _ in range(number)]
data = fedjx.data.FederatedData.from_clients(hospitals)
age, sex = (np.concatenate([of[column] for of in hospitals]) for column in ("age", "sex"))
print(data)

# %%
WOMEN, MEN, GREY, INK = "#d1495b", "#2e6f95", "#c9ccd1", "#22262b"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "figure.dpi": 110})

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
left.fill_between(np.arange(1000), np.sort(data.sizes)[::-1], step="mid", color=GREY)
left.set(yscale="log", xlabel="hospitals, the largest first", ylabel="cases", title="How many cases")
edges = np.arange(0, 101, 5)
right.hist([age[sex == 0], age[sex == 1]], edges, stacked=True, color=[WOMEN, MEN], label=["women", "men"])
right.set(xlabel="age", title="At what age: what nobody may see")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Ask
#
# A question says what one record adds to a sum. With `trust="secure"` the server sees the sum over all hospitals and
# nothing else, so the answer is exact: that of NumPy on data that were never in one place.

# %%
from fedjx.analytics import SEES, Ledger, ask, count, histogram, mean

cases = ask(count(), data, trust="secure")
mean_age = ask(mean("age", low=0, high=100), data, trust="secure")
print(f"{cases.value:.0f} cases, {mean_age.value:.4f} years in the mean; NumPy has {len(age)} and {age.mean():.4f}")
print(f"Each hospital sends {mean_age.bits} bits. The server sees {mean_age.sees}.")

# %% [markdown]
# An exact sum can still say something about one hospital, to whoever knows all the others. Noise hides that. Who adds
# it, and to what, is the question of whom one trusts:

# %%
for trust, sees in SEES.items():
    print(f"{trust:>14}: the server sees {sees}")

# %% [markdown]
# ## The same picture, four times
#
# The share of the cases in every span of ten years, at an epsilon of 1 for all. What a hospital adds is bounded
# first: up to 8 of its cases, drawn at random, where a sum gets the noise; one, where each hospital makes a report
# that is private by itself. Bars are the truth, points are answers with an interval that should have it in 95 of 100
# cases.

# %%
EPSILON, DELTA, DECADES = 1.0, 1e-6, np.arange(0, 101, 10)


def terms(trust, max_records, epsilon=EPSILON, seed=0):
    """Returns how to ask, at equal epsilon; who reports alone does so on one case in any event."""
    bound = {"max_records": max_records} if trust in ("central_dp", "distributed_dp") else {}
    return {"trust": trust, "epsilon": epsilon, "delta": DELTA, "key": jax.random.key(seed), **bound}


private = [trust for trust in SEES if trust not in ("plain", "secure")]
decades = {trust: ask(histogram("age", bins=DECADES), data, **terms(trust, 8)) for trust in private}

# %%
truth = np.histogram(age, DECADES)[0] / len(age)
COLORS = {"central_dp": "#2e6f95", "distributed_dp": "#6a5acd", "local_dp": "#d1495b", "shuffled_dp": "#c77d1e"}

figure, axes = plt.subplots(2, 2, figsize=(9, 5.4), sharex=True, sharey=True)
for axis, (trust, answer) in zip(axes.flat, decades.items(), strict=True):
    number = answer.num_answered or answer.value.sum()  # who has reported is known, a noisy sum hides it
    reach = 1.96 * answer.stddev / number
    axis.bar(DECADES[:-1] + 5, 100 * truth, 9, color=GREY)
    points = {"fmt": "o", "ms": 4, "capsize": 3, "color": COLORS[trust]}
    axis.errorbar(DECADES[:-1] + 5, 100 * answer.value / number, 100 * reach, **points)
    axis.axhline(0, color=INK, lw=0.8)
    axis.set_title(f"{trust}, {answer.bits} bits of a hospital")
for axis in axes[1]:
    axis.set_xlabel("age")
for axis in axes[:, 0]:
    axis.set_ylabel("% of cases")
figure.tight_layout()
plt.show()

# %% [markdown]
# Noise on a sum hardly shows in a thousand hospitals, and it makes next to no difference whether the server adds it
# or the hospitals do. Reports that trust nobody are another matter: their noise grows with the number of reports, and
# a thousand are few. A negative share is no mistake: to cut it off would make sums of the answer wrong.
#
# ## The mean, a few times
#
# The same question with six keys: the noise, as it might have come out. The line is the truth.

# %%
one_each = fedjx.data.preprocess(data, fedjx.data.truncate(1))  # a case of each hospital, for all of them alike
question = mean("age", low=0, high=100)
exact = np.mean([of["age"][0] for of in hospitals])
drawn = {trust: [ask(question, one_each, **terms(trust, 1, seed=seed)) for seed in range(6)] for trust in private}

# %%
figure, axis = plt.subplots(figsize=(8, 2.8))
for row, (trust, answers) in enumerate(drawn.items()):
    first, reach = answers[0].value, 1.96 * answers[0].stddev
    axis.plot([answer.value for answer in answers], np.full(6, row), "o", ms=5, alpha=0.35, color=COLORS[trust], mew=0)
    axis.errorbar(first, row, xerr=reach, fmt="o", ms=6, capsize=4, color=COLORS[trust])
axis.axvline(exact, color=INK, lw=1)
axis.set_yticks(range(4), list(drawn))
axis.set(
    ylim=(3.5, -0.5),
    xlabel="mean age, years",
    title="Epsilon 1: the first answer with its interval of 95 %, and five others",
)
plt.show()

# %% [markdown]
# ## What an epsilon buys
#
# The standard deviation of the mean age, by the epsilon that the answer costs. The spread of the ages is dotted: an
# answer above it says less than a guess.

# %%
epsilons = [0.25, 1.0, 2.0]
shown = ["central_dp", "shuffled_dp", "local_dp"]  # distributed_dp would hide central_dp
errors = {
    trust: [ask(question, one_each, **terms(trust, 1, epsilon)).stddev for epsilon in epsilons] for trust in shown
}

# %%
figure, axis = plt.subplots(figsize=(7, 4))
for trust, error in errors.items():
    axis.loglog(epsilons, error, "o-", ms=5, color=COLORS[trust])
    axis.text(epsilons[0] / 1.05, error[0], trust, ha="right", va="center", color=COLORS[trust])
axis.axhline(age.std(), color=INK, ls=":", lw=1)
axis.set(xlabel="epsilon, at a delta of 1e-6", ylabel="standard deviation, years", xlim=(0.15, 2.2))
axis.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
axis.minorticks_off()
axis.set_title("1,000 hospitals, a case of each")
plt.show()

# %% [markdown]
# A hundred times as many hospitals would take the lowest curve down by a hundred, the upper ones by ten. Of a
# thousand reports the theorem on shuffling promises nothing above an epsilon of about 1.5, and they cost what they
# cost unshuffled: where the curves meet. A million would hide each other far better.
#
# ## Median, quartiles, and women and men
#
# All from one histogram of fine bins, by sex, of which the noise is paid for once. Least is known of the women's
# median: it lies between the two forms, where few fall ill.

# %%
from fedjx.analytics import by_group, quantile

shares = np.array([0.25, 0.5, 0.75])
quartiles = by_group(quantile("age", shares, low=0, high=100, num_bins=100, arity=5), "sex", num_groups=2)
answer = ask(quartiles, data, **terms("distributed_dp", 8))
truth = {"women": np.quantile(age[sex == 0], shares), "men": np.quantile(age[sex == 1], shares)}
for row, name in enumerate(truth):
    print(
        name,
        answer.value[row].round(1),
        "give or take",
        (1.96 * answer.stddev[row]).round(1),
        "; truth",
        truth[name].round(1),
    )

# %%
figure, axis = plt.subplots(figsize=(8, 2))
for row, (name, color) in enumerate({"women": WOMEN, "men": MEN}.items()):
    axis.plot(truth[name], np.full(3, row), "|", ms=26, mew=2, color=INK)
    reach = 1.96 * answer.stddev[row]
    axis.errorbar(answer.value[row], np.full(3, row), xerr=reach, fmt="o", ms=6, capsize=4, color=color)
axis.set_yticks([0, 1], list(truth))
axis.set(xlabel="age", xlim=(0, 100), ylim=(1.6, -0.6))
axis.set_title("Quartiles with distributed_dp, epsilon 1; strokes are the truth")
plt.show()

# %% [markdown]
# ## A budget
#
# Every answer costs. A ledger pays for all questions to the same hospitals, and asks nobody once it cannot.

# %%
from fedjx.privacy import BudgetSpent

ledger = Ledger(epsilon=1.5, delta=DELTA)
for number in range(5):
    how = {"trust": "central_dp", "epsilon": 0.8, "delta": DELTA / 10, "max_records": 1, "key": jax.random.key(number)}
    try:
        answer = ask(question, one_each, ledger=ledger, **how)
        print(f"{answer.value:.2f} years, give or take {1.96 * answer.stddev:.2f}; {ledger.spent():.2f} spent")
    except BudgetSpent as refused:
        print("refused:", refused)
        break
