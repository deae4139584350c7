"""The PyTorch + timm side of gpu.py: the peers of our networks, in bfloat16 and channels-last."""

try:
    import timm
    import torch
except (ImportError, OSError):  # OSError: its libraries do not go with the card's
    timm = torch = None

RATE, MOMENTUM = 1e-3, 0.9  # of SGD, on both sides
PEERS = {"static": "mobilenetv3_large_100", "CondConv": "tf_efficientnet_cc_b0_8e"}


def of_pytorch(network: str, batch_size: int, training: bool, side: int, steps: int, by_compiler: bool):
    """A function that runs the peer so many times and returns when they are done."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = network != "CondConv"  # trials of grouped convolutions may take very long
    torch.manual_seed(0)
    layout = dict(memory_format=torch.channels_last)
    model = timm.create_model(PEERS[network], drop_rate=0.0, drop_path_rate=0.0).to(device, **layout)
    model = model.train(training)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    model = torch.compile(model) if by_compiler else model
    images = torch.randn(batch_size, 3, side, side, device=device).contiguous(**layout)
    labels = torch.randint(1000, (batch_size,), device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def forward():
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            for _ in range(steps):
                model(images)
        wait()

    def step():
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        wait()

    return step if training else forward
