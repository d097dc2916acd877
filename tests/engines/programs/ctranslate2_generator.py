"""A CTranslate2 generator without end: ``ctranslate2_generator.py FOLDER [WORKERS]``; makes a model if missing."""

import os
import sys
import threading

import ctranslate2
import numpy

VOCABULARY, WIDTH, HEADS, LAYERS, INNER = 500, 512, 8, 2, 2048


def make_model(folder: str) -> None:
    random = numpy.random.default_rng(0)
    specs = ctranslate2.specs
    spec = specs.TransformerDecoderModelSpec.from_config(LAYERS, HEADS, pre_norm=True, activation=specs.Activation.GELU)

    def fill(layer: object, *shape: int) -> None:
        layer.weight = (random.standard_normal(shape) * 0.02).astype(numpy.float32)
        if hasattr(layer, "bias"):
            layer.bias = numpy.zeros(shape[0], numpy.float32)

    def fill_norm(layer: object) -> None:
        layer.gamma = numpy.ones(WIDTH, numpy.float32)
        layer.beta = numpy.zeros(WIDTH, numpy.float32)

    decoder = spec.decoder
    decoder.scale_embeddings = False
    fill(decoder.embeddings, VOCABULARY, WIDTH)
    fill(decoder.projection, VOCABULARY, WIDTH)
    decoder.position_encodings.encodings = random.standard_normal((512, WIDTH)).astype(numpy.float32)
    fill_norm(decoder.layer_norm)
    for layer in decoder.layer:
        fill_norm(layer.self_attention.layer_norm)
        fill(layer.self_attention.linear[0], 3 * WIDTH, WIDTH)
        fill(layer.self_attention.linear[1], WIDTH, WIDTH)
        fill_norm(layer.ffn.layer_norm)
        fill(layer.ffn.linear_0, INNER, WIDTH)
        fill(layer.ffn.linear_1, WIDTH, INNER)
    tokens = [f"t{number}" for number in range(VOCABULARY - 3)]
    spec.register_vocabulary([*tokens, "<unk>", "<s>", "</s>"])
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<unk>"
    spec.validate()
    spec.optimize()
    os.makedirs(folder)
    spec.save(folder)


def serve(folder: str, workers: int) -> None:
    generator = ctranslate2.Generator(folder, device="cpu", inter_threads=workers, intra_threads=0)

    def generate() -> None:
        while True:
            generator.generate_batch([["<s>", "t1", "t2"]] * 4, max_length=60, min_length=60)

    for _ in range(workers):
        threading.Thread(target=generate).start()


if __name__ == "__main__":
    if os.path.exists(sys.argv[1]):
        serve(sys.argv[1], int((*sys.argv[2:], "1")[0]))
    else:
        make_model(sys.argv[1])
