"""What an update sees of an agent, for the tests of agents."""

import torch

ROWS = 12


def collect(agent, env, student, progress=0.5, seed=0):
    """Trajectories of examples that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(len(env.examples), (env.num_envs,), generator=generator)
    return agent.collect(indices, env, student, progress, generator)


def learn(agent, env, student):
    """What an update sees: the trajectories, the loss and the gradient of each parameter."""
    student.zero_grad()
    trajectories = collect(agent, env, student)
    loss = agent.loss(trajectories, student, env.expert)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    return trajectories, loss.detach(), gradients


def assert_learn_the_same(one, other, env, student):
    """Equal losses and equal gradients from the same seed."""
    _, loss, gradients = learn(one, env, student)
    _, other_loss, other_gradients = learn(other, env, student)
    torch.testing.assert_close(loss, other_loss)
    torch.testing.assert_close(gradients, other_gradients)
