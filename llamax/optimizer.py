"""AdamW and its schedule on megatron.core, plain or distributed over the data-parallel ranks.

The update is split in two, so that a step can be judged between them: `gradient_norm`, then `update` or nothing.
"""

import contextlib

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import DistributedOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler


def wrap_model(model, args):
    """DistributedDataParallel around this rank's model, its gradients reduced in fp32."""
    config = model.config
    model = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=args.use_distributed_optimizer,
            overlap_grad_reduce=args.overlap_grad_reduce,
            overlap_param_gather=args.overlap_param_gather,
        ),
        model,
    )
    model.broadcast_params()
    config.finalize_model_grads_func = finalize_model_grads
    config.no_sync_func = model.no_sync
    return model


def build_optimizer(model, args):
    """(optimizer, scheduler) for a model from `wrap_model`."""
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            lr=args.lr,
            min_lr=args.min_lr,
            weight_decay=args.weight_decay,
            adam_beta1=0.9,
            adam_beta2=args.adam_beta2,
            clip_grad=args.clip_grad,
            bf16=args.bf16,
            params_dtype=torch.bfloat16 if args.bf16 else torch.float32,
            use_distributed_optimizer=args.use_distributed_optimizer,
            overlap_param_gather=args.overlap_param_gather,
        ),
        [model],
    )
    for part in optimizer.chained_optimizers:
        if type(part.optimizer) in (torch.optim.Adam, torch.optim.AdamW):  # Transformer Engine's derives from it
            for group in part.optimizer.param_groups:
                group["fused"] = True  # one pass over memory; get_megatron_optimizer has no option for it
            if isinstance(part, DistributedOptimizer):
                _let_torch_adam_load(part)
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=args.lr,
        min_lr=args.min_lr,
        lr_warmup_steps=int(args.lr_warmup_fraction * args.lr_decay_iters),
        lr_decay_steps=args.lr_decay_iters,
        lr_decay_style=args.lr_decay_style,
        start_wd=args.weight_decay,
        end_wd=args.weight_decay,
        wd_incr_steps=args.lr_decay_iters,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
    )
    return optimizer, scheduler


def _let_torch_adam_load(part):
    """Repair what keeps megatron-core 0.16.1 from loading the distributed optimizer's state on torch's Adam.

    torch's Adam counts steps in a tensor a parameter. megatron.core asks for it before there is any state, gives all
    parameters the same tensor (which then counts each of them), and wants it among the moments of a checkpoint.
    """
    adam = part.optimizer
    for group in adam.param_groups:
        for parameter in group["params"]:
            if parameter.numel() and "step" not in adam.state[parameter]:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                adam.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
    original = part._set_main_param_and_optimizer_states

    def with_step(model_param, tensors):
        group, order = part.model_param_group_index_map[model_param]
        state = adam.state[adam.param_groups[group]["params"][order]]
        state["step"] = state["step"].clone()
        original(model_param, {**tensors, "step": state["step"]})

    part._set_main_param_and_optimizer_states = with_step


def gradient_norm(optimizer):
    """Make the reduced gradients ready for `update`; their norm over the whole model, the same on every rank."""
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def update(optimizer, grad_norm):
    """Clip the gradients to --clip-grad and make the step."""
    for part in optimizer.chained_optimizers:
        parameters = part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            scale = part.config.clip_grad / (grad_norm + 1e-6)
            if scale < 1:  # as megatron.core's clip_grad_by_total_norm_fp32, which makes a copy of each gradient
                torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], scale)
    optimizer.step_with_ready_grads()


@contextlib.contextmanager
def whole_parameters(model):
    """For evaluating and saving: with --overlap-param-gather, a step's parameters are gathered when the next step's
    forward pass comes to them."""
    overlapped = model.ddp_config.overlap_param_gather
    if overlapped:
        model.disable_forward_pre_hook()
    yield
    if overlapped:
        model.enable_forward_pre_hook()
