"""Tiny pipelines with random weights, made without a hub: 0.1 s an image on a CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# Tokenizers that know each byte -----------------------------------------------------------


def byte_alphabet() -> list[str]:
    """One printable character for each byte, as byte-level tokenizers have them."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def clip_tokenizer() -> Any:
    letters = byte_alphabet()
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def qwen_tokenizer() -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    vocabulary = {token: number for number, token in enumerate([*byte_alphabet(), *special])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=512)
    tokenizer.chat_template = _CHAT
    return tokenizer


def t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(chr(letter), -3.0) for letter in range(33, 127)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64)


# Models ---------------------------------------------------------------------------------


def clip_config(size: int) -> Any:
    return CLIPTextConfig(
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        vocab_size=size, max_position_embeddings=77, bos_token_id=size - 2,
        eos_token_id=size - 1, pad_token_id=size - 1, projection_dim=32, hidden_act="gelu",
    )  # fmt: skip


def decoder(latents: int = 4, **more: Any) -> Any:
    return AutoencoderKL(
        block_out_channels=[32, 64], latent_channels=latents, layers_per_block=1, sample_size=64,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=32, **more,
    )  # fmt: skip


def denoiser(**more: Any) -> Any:
    return UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=32, in_channels=4,
        out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **more,
    )  # fmt: skip


def sd() -> Any:
    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        unet=denoiser(cross_attention_dim=32, attention_head_dim=8), vae=decoder(),
        scheduler=EulerDiscreteScheduler(**_BETAS, steps_offset=1), tokenizer=tokenizer,
        text_encoder=CLIPTextModel(clip_config(len(tokenizer))), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl(scheduler: Any = None) -> Any:
    tokenizer = clip_tokenizer()
    unet = denoiser(
        attention_head_dim=(4, 8), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 1), cross_attention_dim=64,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        unet=unet, vae=decoder(), tokenizer=tokenizer, tokenizer_2=clip_tokenizer(),
        scheduler=scheduler or EulerDiscreteScheduler(**_BETAS, steps_offset=1),
        text_encoder=CLIPTextModel(clip_config(len(tokenizer))),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(len(tokenizer))),
    )  # fmt: skip


def turbo() -> Any:
    """As sdxl-turbo, but for the spacing of its timesteps, which an engine has to set."""
    return sdxl(EulerAncestralDiscreteScheduler(**_BETAS))


def zimage() -> Any:
    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2, norm_eps=1e-5, qk_norm=True,
        cap_feat_dim=16, rope_theta=256.0, t_scale=1000.0, axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )  # fmt: skip
    with torch.no_grad():  # they are not initialised otherwise
        transformer.x_pad_token.fill_(1.0)
        transformer.cap_pad_token.fill_(1.0)
    config = Qwen3Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=1024,
    )  # fmt: skip
    return ZImagePipeline(
        transformer=transformer, vae=decoder(16, scaling_factor=0.3611, shift_factor=0.1159),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), text_encoder=Qwen3Model(config),
        tokenizer=tokenizer,
    )  # fmt: skip


def flux() -> Any:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    vae = AutoencoderKL(
        sample_size=32, block_out_channels=(4,), layers_per_block=1, latent_channels=1,
        norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
        shift_factor=0.0609, scaling_factor=1.5035,
    )  # fmt: skip
    t5_config = T5Config(vocab_size=len(t5), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=transformer,
        text_encoder=CLIPTextModel(clip_config(len(clip))), tokenizer=clip,
        text_encoder_2=T5EncoderModel(t5_config), tokenizer_2=t5,
    )  # fmt: skip


MAKERS: dict[str, Callable[[], Any]] = {
    "sd": sd,
    "sdxl": sdxl,
    "sdxl-turbo": turbo,
    "z-image-turbo": zimage,
    "flux.1-schnell": flux,
}


def save(name: str, folder: Path) -> Path:
    """Write the pipeline of this name into a folder of this name."""
    torch.manual_seed(0)
    MAKERS[name]().save_pretrained(folder / name, safe_serialization=True)
    return folder / name
