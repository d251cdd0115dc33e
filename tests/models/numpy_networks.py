"""Slow NumPy versions of the networks' layers, in float64, from their papers; parameters are those of the models."""

import numpy as np


def relu(x):
    return np.maximum(x, 0)


def relu6(x):
    return np.clip(x, 0, 6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def windows(x, size, stride, fill):
    """Yields rows, columns, how many, and the windows ``[B, size, size, C]`` of images, padded as by ``SAME``."""
    sides = [-(-side // stride) for side in x.shape[1:3]]
    total = [max((n - 1) * stride + size - side, 0) for n, side in zip(sides, x.shape[1:3], strict=True)]
    around = [(n // 2, n - n // 2) for n in total]
    x = np.pad(x, [(0, 0), *around, (0, 0)], constant_values=fill)
    for row, column in np.ndindex(*sides):
        top, left = row * stride, column * stride
        yield row, column, sides, x[:, top : top + size, left : left + size]


def over_windows(x, size, stride, fill, of_window):
    """Computes ``of_window``, ``[B, C']``, of each window."""
    places = [(row, column, sides, of_window(seen)) for row, column, sides, seen in windows(x, size, stride, fill)]
    values = np.stack([value for *_, value in places], axis=1)
    return values.reshape(len(x), *places[0][2], -1)


def convolution(x, params, stride=1):
    kernel = np.asarray(params["kernel"], np.float64)
    depthwise = kernel.shape[2] == 1 < x.shape[-1]
    formula = "bijc,ijc->bc" if depthwise else "bijc,ijcd->bd"
    kernel = kernel[:, :, 0] if depthwise else kernel
    return over_windows(x, len(kernel), stride, 0, lambda seen: np.einsum(formula, seen, kernel))


def largest(x, size, stride):
    return over_windows(x, size, stride, -np.inf, lambda seen: seen.max(axis=(1, 2)))


def scaled(x, params):
    return x * np.asarray(params["scale"], np.float64) + np.asarray(params["bias"], np.float64)


def group_norm(x, params, num_groups):
    groups = x.reshape(len(x), *x.shape[1:3], num_groups, -1)
    mean = groups.mean(axis=(1, 2, 4), keepdims=True)
    variance = ((groups - mean) ** 2).mean(axis=(1, 2, 4), keepdims=True)
    return scaled(((groups - mean) / np.sqrt(variance + 1e-3)).reshape(x.shape), params)


def layer_norm(x, params):
    centred = x - x.mean(axis=-1, keepdims=True)
    return scaled(centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5), params)


def dense(x, params):
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def resnet(params, x, num_groups, stage_stride):
    """Two stages of one block each."""

    def norm(x, params):
        return group_norm(x, params, num_groups)

    stem, stem_norm, _, _, one, two, last_norm, *_ = (params["layers"].get(i) for i in range(7))
    x = largest(relu(norm(convolution(x, stem, 2), stem_norm)), 3, 2)
    branch = one["branch"]["layers"]
    x = x + convolution(relu(norm(convolution(x, branch[0]), branch[1])), branch[3])
    branch, around = two["branch"]["layers"], two["around"]["layers"]
    y = convolution(relu(norm(x, branch[0])), branch[2], stage_stride)
    y = convolution(relu(norm(y, branch[3])), branch[5])
    x = y + norm(convolution(x, around[0], stage_stride), around[1])
    return dense(relu(norm(x, last_norm)).mean(axis=(1, 2)), params["head"])


def mobilenet(params, x, num_groups):
    """A block that is not wider inside, one with a stride, and one that its input is added to."""
    layers = params["layers"]

    def step(x, layers, i, stride=1):
        return group_norm(convolution(x, layers[i], stride), layers[i + 1], num_groups)

    x = relu6(step(x, layers, 0, 2))
    narrow, strided, added = layers[3]["layers"], layers[4]["layers"], layers[5]["branch"]["layers"]
    x = step(relu6(step(x, narrow, 0)), narrow, 3)
    x = step(relu6(step(relu6(step(x, strided, 0)), strided, 3, 2)), strided, 6)
    x = x + step(relu6(step(relu6(step(x, added, 0)), added, 3)), added, 6)
    return dense(relu6(step(x, layers, 6)).mean(axis=(1, 2)), params["head"])


def lstm(params, tokens):
    """One recurrent layer, and a projection."""
    embed, recurrent, projection = (params["layers"][i] for i in range(3))
    cell = recurrent["rnn"]["cell"]
    x = np.asarray(embed["embedding"], np.float64)[tokens]
    state = memory = np.zeros((len(tokens), len(cell["dense_h"]["kernel"])))
    outputs = []
    for t in range(tokens.shape[1]):
        gates = x[:, t] @ np.asarray(cell["dense_i"]["kernel"], np.float64) + dense(state, cell["dense_h"])
        written, kept, candidate, read = np.split(gates, 4, axis=-1)
        memory = sigmoid(kept) * memory + sigmoid(written) * np.tanh(candidate)
        state = sigmoid(read) * np.tanh(memory)
        outputs.append(state)
    return dense(dense(np.stack(outputs, axis=1), projection), params["head"])


def transformer(params, tokens):
    embedding = np.asarray(params["embed"]["embedding"], np.float64)
    length, width = tokens.shape[1], embedding.shape[1]
    x = embedding[tokens] * np.sqrt(width)
    for position, i in np.ndindex(length, width):
        angle = position / 10_000 ** (2 * (i // 2) / width)
        x[:, position, i] += np.cos(angle) if i % 2 else np.sin(angle)
    for block in (params["blocks"][i] for i in range(len(params["blocks"]))):
        x = layer_norm(x + attention(x, block["attention"]), block["norm1"])
        x = layer_norm(x + dense(relu(dense(x, block["wide"])), block["narrow"]), block["norm2"])
    return x @ embedding.T


def attention(x, params):
    """Of each token to itself and to earlier ones."""

    def projected(name):
        kernel, bias = (np.asarray(params[name][part], np.float64) for part in ("kernel", "bias"))
        return np.einsum("btw,whd->bthd", x, kernel) + bias

    query, key, value = (projected(name) for name in ("query", "key", "value"))
    outputs = np.zeros_like(value)
    for b, t, h in np.ndindex(*value.shape[:3]):
        scores = key[b, : t + 1, h] @ query[b, t, h] / np.sqrt(value.shape[-1])
        weights = np.exp(scores - scores.max())
        outputs[b, t, h] = weights / weights.sum() @ value[b, : t + 1, h]
    kernel, bias = (np.asarray(params["out"][part], np.float64) for part in ("kernel", "bias"))
    return np.einsum("bthd,hdw->btw", outputs, kernel) + bias
