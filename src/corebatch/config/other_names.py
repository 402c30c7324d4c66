"""Keys of other trainers that have another name here, or are left out on purpose.

The keys are those of TRL, transformers 4, Axolotl, LLaMA-Factory, ms-swift and torchtune.
"""

from __future__ import annotations

from collections.abc import Container

_ANSWERS = (
    "Answers alone are trained anyway (rows of text as a whole); train_turns says which answers of a conversation."
)
_PACKING = (
    "Packing is left out on purpose: rows are chosen one by one, so they are not joined before. Micro-batches are "
    "trained without padding by coreset.padding_free, and sorted by length."
)
_DATA = "A data set is an entry of the list datasets: `datasets: [{path: rows.jsonl}]`, with "
_ONLY_SFT = "There is one way of training, supervised fine-tuning, and no key for it."
_BITS = "Weights are kept in four bits by load_in_4bit: true, or in their own type."
_MAPPED = "The columns of a data set are named by `columns` of its entry in datasets."
_HELD_OUT = "Held-out rows are not split off but named: eval_datasets, whose entries may have a split, as train[:5%]."
_FORMS = "How a row is read follows from its columns: prompt and completion, messages, text and others."
_TOKENIZER = "The tokenizer is the model's own; pad_token, eos_token and chat_template change it."
_ADAPTERS = "LoRA is on if a key that begins with lora_ is given; else all weights are trained."
_TRACKERS = "Where a tracker writes is set by its own environment variable, such as TENSORBOARD_LOGGING_DIR."

_ANSWERED: dict[str, str] = {
    # the model
    "model_name_or_path": "model model_name model_id model_path base_model pretrained_model_name_or_path",
    "model_revision": "revision",
    "dtype": "torch_dtype compute_dtype",
    "use_bnb_nested_quant": "bnb_4bit_use_double_quant",
    "bnb_4bit_compute_dtype": "bnb_4bit_compute_type",
    "attn_implementation": "attn_impl",
    "attn_implementation: flash_attention_2": "flash_attn flash_attention use_flash_attention_2 flash_attention_2",
    "attn_implementation: sdpa": "sdp_attention",
    "attn_implementation: eager": "eager_attention",
    "trust_remote_code": "trust_remote",
    f"Eight bits are not supported. {_BITS}": "load_in_8bit",
    _BITS: "quantization_bit quant_bits",
    f"{_BITS} The keys that begin with bnb_ say how.": "quantization_config",
    "Keys of their own are dtype, attn_implementation, model_revision and load_in_4bit.": "model_init_kwargs",
    _TOKENIZER: "tokenizer_name_or_path tokenizer_name",
    "The tokens that can be set are eos_token and pad_token.": "special_tokens",
    # adapters
    "lora_r": "r lora_rank rank lora_dim",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_modules": "target_modules lora_target lora_modules",
    "lora_target_modules: all-linear": "lora_target_linear",
    "LoRA is on if a key that begins with lora_ is given, as lora_r: 16, or by use_peft: true.": "lora",
    "use_peft": "use_lora",
    "QLoRA is load_in_4bit: true with lora_r.": "qlora",
    "LoRA is on if a key that begins with lora_ is given; QLoRA is load_in_4bit: true beside it.": "adapter",
    "The keys of LoRA are lora_r, lora_alpha, lora_dropout and lora_target_modules.": "peft_config",
    _ADAPTERS: "finetuning_type train_type tuner_type",
    "DoRA is not supported: adapters are plain LoRA.": "use_dora",
    "Rank-stabilised LoRA is lora_alpha x sqrt(lora_r) in place of lora_alpha.": "use_rslora",
    "Modules trained beside the adapters are not supported.": "lora_modules_to_save modules_to_save",
    "The task is always a causal language model's.": "lora_task_type",
    # data
    f"{_DATA}one for each data set.": "dataset data",
    f"{_DATA}the key path.": "data_path train_file train_files dataset_dir",
    f"{_DATA}the key path (a file, a folder, a pattern or a list of them).": "data_files",
    f"{_DATA}a hub id as path.": "dataset_name",
    f"{_DATA}the configuration as name.": "dataset_config dataset_config_name",
    f"{_DATA}the key split.": "dataset_train_split",
    "Held-out rows are entries of the list eval_datasets, with the key split.": "dataset_test_split",
    "eval_datasets": "test_datasets eval_dataset val_dataset validation_file validation_datasets",
    _HELD_OUT: "val_set_size val_size split_dataset_ratio",
    f"A column called text is trained as it is. {_MAPPED}": "dataset_text_field text_field text_column",
    _MAPPED: "columns field_messages",
    "dataset_cache": "dataset_prepared_path tokenized_path load_from_cache_file",
    "dataset_cache: false": "overwrite_cache",
    "Data sets are read as a whole, and kept on the disk.": "dataset_streaming streaming",
    "How often sources are drawn is coreset.sampling, or the key share of an entry in datasets; how often rows are in "
    "the data is the key weight.": "mix_strategy interleave_probs",
    "So many rows are taken by the key split of a data set, as in train[:1000].": "max_samples",
    "Rows are always shuffled; the order follows from seed.": "shuffle_dataset shuffle_merged_datasets",
    # rows to tokens
    "max_length": "max_seq_length max_seq_len sequence_len seq_length seq_len cutoff_len block_size model_max_length "
    "max_prompt_length",
    "Rows longer than max_length keep their beginning.": "truncation_mode truncation_strategy",
    _ANSWERS: "assistant_only_loss completion_only_loss roles_to_train response_template instruction_template",
    f"Prompts are never trained. {_ANSWERS}": "train_on_inputs train_on_prompt",
    "train_turns: last": "mask_history",
    "The end of an answer is trained if its template or the tokenizer gives it one.": "train_on_eos",
    "chat_template": "chat_template_path chat_template_jinja template",
    _FORMS: "prompt_template type dataset_kwargs formatting_func",
    _PACKING: "packing sample_packing multipack neat_packing eval_packing eval_sample_packing packing_strategy",
    "coreset.padding_free": "padding_free",
    "A micro-batch is padded to its longest row.": "pad_to_sequence_len pad_to_multiple_of",
    # training
    "per_device_train_batch_size": "micro_batch_size batch_size train_batch_size per_gpu_train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size per_gpu_eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation accumulate_grad_batches grad_accum grad_accum_steps",
    "num_train_epochs": "num_epochs epochs n_epochs",
    "max_steps": "max_train_steps num_train_steps max_steps_per_epoch steps",
    "learning_rate": "lr",
    "optim": "optimizer",
    "lr_scheduler_type": "lr_scheduler scheduler",
    "warmup_steps": "warmup num_warmup_steps",
    "warmup_steps (a number below 1 is a share of all steps)": "warmup_ratio",
    "weight_decay": "weight_decay_rate",
    "adam_epsilon": "adam_eps",
    "max_grad_norm": "gradient_clipping max_gradient_norm",
    "train_sampling_strategy: group_by_length": "group_by_length",
    "group_by_length: true": "train_sampling_strategy",
    "eval_strategy": "evaluation_strategy",
    "eval_strategy with eval_steps (a number below 1 is a share of all steps)": "evals_per_epoch",
    "save_strategy with save_steps (a number below 1 is a share of all steps)": "saves_per_epoch",
    "Training is not stopped early; load_best_model_at_end keeps the best model.": "early_stopping_patience",
    "Weights are always saved as safetensors.": "save_safetensors",
    "use_cpu": "no_cuda",
    "A device of this kind is used if there is one.": "use_mps_device",
    "Mixed precision is bf16: true or fp16: true.": "half_precision_backend mixed_precision precision fp16_opt_level",
    "fp16": "float16",
    "bf16": "bfloat16",
    "gradient_checkpointing": "gradient_checkpoint activation_checkpointing enable_activation_checkpointing",
    "Activations are not offloaded; gradient_checkpointing: true saves memory.": "activation_offloading",
    "neftune_noise_alpha": "neftune_alpha",
    "use_liger_kernel": "liger use_liger enable_liger_kernel",
    "torch_compile": "compile",
    "deepspeed": "deepspeed_config ds_config",
    "seed": "random_seed",
    "dataloader_num_workers": "num_workers",
    "hub_model_id": "push_to_hub_model_id",
    "hub_token": "push_to_hub_token",
    "Trackers are set by report_to and their own environment variables, such as WANDB_PROJECT.": "wandb_project",
    "run_name": "wandb_name wandb_run_id",
    "report_to: wandb": "use_wandb",
    _TRACKERS: "logging_dir logdir",
    "output_dir": "output out_dir save_dir",
    "overwrite": "overwrite_output_dir",
    "resume_from_checkpoint: true": "auto_resume_from_checkpoints resume",
    "resume_from_checkpoint": "resume_from",
    "dataset_num_proc": "preprocessing_num_workers dataset_processes",
    # the loss, and other ways of training
    "The loss is the cross-entropy of trained tokens; coreset.loss says whose mean it is.": "loss_type",
    "The router's loss of a mixture of experts is not trained.": "router_aux_loss_coef",
    _ONLY_SFT: "rl stage rlhf_type reward_model",
}
"""What is said of a key -> the keys, as words: a name here, or a sentence."""
OTHER_NAMES = {name: found for found, names in _ANSWERED.items() for name in names.split()}


def other_name(key: str, known: Container[str]) -> str:
    """' Here it is ...' for another trainer's key, or why there is none; '' for an unknown word. `known`: the keys that
    this version of transformers takes."""
    found = OTHER_NAMES.get(key) or OTHER_NAMES.get(key.lower())
    if found is None:
        return ""
    if found.endswith("."):
        return f" {found}"
    name = found.split(":")[0].split()[0]
    return f" Here it is {found}." if name in known or name.startswith("coreset.") else ""
