"""Every field of a training, once. The other configs import this one and state only what differs.

Override any of them on the command line: --config.batch_size=32 --config.data.path=/data/isic
The values are the published ones of DCGAN (Radford et al. 2016, arXiv:1511.06434).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """A DCGAN at 64 px on a folder of images."""
    c = ConfigDict()

    # The networks.
    c.arch = "dcgan"  # dcgan | sngan: spectral norm on every convolution of the discriminator | resnet: residual SNGAN
    c.image_size = 64  # px, a power of two from 16 to 512
    c.channels = 3  # 3: RGB, 1: grey
    c.latent_dim = 100  # length of the generator's input
    c.gen_features = 64  # feature maps beside the image; they double as the resolution halves
    c.dis_features = 64  # the same for the discriminator
    c.upsample = "transposed"  # dcgan, sngan: transposed | nearest | bilinear: enlarge, then convolve, without a grid
    c.conditional = False  # learn each class of the data, so that sample.py --label can draw one; needs labels
    c.balance_classes = True  # conditional: as many images of each class in a batch, however rare it is in the data
    c.dis_dropout = 0.0  # share of the values that the discriminator sees set to 0 in training; 0 to 1, 1 excluded
    c.dtype = "float32"  # float32 | bfloat16: what convolutions compute in; parameters stay float32

    # How long. An epoch is data set // batch_size steps; a last partial batch is dropped.
    c.batch_size = 16  # images a step, over all devices; must divide by their number
    c.num_epochs = 200
    c.num_steps = 0  # above 0: overrides num_epochs

    # The optimisation.
    c.loss = "bce"  # bce | hinge | wgan-gp, whose discriminator has no batch normalisation
    c.gp_weight = 10.0  # wgan-gp: weight of the gradient penalty
    c.r1_weight = 0.0  # penalty on the discriminator's slope at reals, the paper's gamma; 10 is common; 0: off
    c.r1_every_steps = 1  # take it only every so many steps, and as much stronger; 16 is common
    c.lecam_weight = 0.0  # penalty on the distance of its logits to their past means; 0.3 is the paper's; 0: off
    c.consistency_weight = 0.0  # on how mirroring left-right and shifting change its logits; 10 is the paper's; 0: off
    c.dis_steps = 1  # steps of the discriminator, each with its own batch, for one of the generator
    c.simultaneous = False  # both networks learn from each other as they were, instead of the discriminator first
    c.lr_gen = 2e-4  # Adam's rate for the generator
    c.lr_dis = 2e-4  # and for the discriminator; "10x" in the published experiments is 2e-3 here
    c.adam_beta1 = 0.5  # 0 to 1, 1 excluded
    c.adam_beta2 = 0.999  # 0 to 1, 1 excluded
    c.real_label = 1.0  # bce: the discriminator's target for reals; 0.9 is one-sided label smoothing
    c.label_flip = 0.0  # bce: share of the reals in a batch whose target is 0 instead
    c.ema_decay = 0.0  # average the generator's weights and sample from the average; 0: off; 0.999 is common
    c.ema_rampup = 0.0  # the average's half-life, at most, as a share of the generator's steps; 0: off; 0.05 is common
    c.init_from = ""  # first weights: a workdir, a folder of generator/ and discriminator/, or a PyTorch file
    c.seed = 0  # decides weights, order of the data, latents, flips; not negative

    # What is written to the workdir, and how often (in steps). None of it changes the training.
    c.log_every_steps = 50  # a line of metrics.jsonl
    c.sample_every_steps = 500  # a picture in samples/
    c.checkpoint_every_steps = 500  # a crash costs at most this many steps
    c.keep_checkpoints = 3  # the last so many
    c.num_sample_images = 64  # images in a picture
    c.evaluate_every_steps = 0  # a line of evaluations.jsonl, needs data.holdout_fraction; 0: never
    c.best_measure = "swd"  # swd | kid: of which the best generator so far is kept, in best/
    c.tensorboard = True  # also log for TensorBoard, in tensorboard/
    c.report = True  # leave report.html and plots/, one look at all of this
    c.report_every_minutes = 10.0  # make the report anew while training; 0: only at the end

    # What goes wrong: a look every so many steps, and what to do about an alarm. docs/alarms.md explains each.
    c.monitor_every_steps = 100  # diversity, copies, held-out scores, spectral norms, in health.jsonl; 0: no alarms
    c.alarm_patience = 500  # steps that bad signs must last to be an alarm
    c.on_alarm = "warn"  # warn | stop | rollback: to the last healthy checkpoint, and the network at fault slower
    c.rollback_factor = 0.5  # by which a rollback multiplies lr_dis, or lr_gen where that is at fault; between 0 and 1
    c.max_rollbacks = 3  # after so many, alarms only warn

    c.output_prefix = ""  # at the end also PREFIX_loss_plot.png, _real_fake_grid.png, _metrics_report.out, images

    # What the discriminator sees of reals and fakes alike, drawn anew for each image and differentiable, so that it
    # cannot learn a small data set by heart and the generator does not learn the changes (arXiv:2006.10738).
    c.augment = ConfigDict()
    c.augment.flips = False  # mirror left-right and top-bottom, each with probability 1/2
    c.augment.quarter_turns = False  # by 0, 90, 180 or 270 degrees; dermoscopy has no up
    c.augment.color = 0.0  # strength of changes in brightness, saturation and contrast; 1 is published
    c.augment.translation = 0.0  # shift by up to this share of the side, grey beyond the edge; 0.125 is published
    c.augment.cutout = 0.0  # side of a grey square that hides part of the image, as a share; 0.5 is published
    c.augment.probability = 1.0  # of each of these changes, for each image
    c.augment.adaptive_target = 0.0  # steer it from 0 by the discriminator's overfitting; 0.6 is published; 0: off
    c.augment.adaptive_images = 500_000  # adaptive: reals over which it can go from 0 to 1

    c.data = ConfigDict()
    c.data.source = "folder"  # folder | csv | tfds | phantom: procedural dermoscopy, needs no files
    c.data.path = ""  # folder, csv: the image folder; tfds: its data_dir ("" is the usual one)
    c.data.labels_csv = ""  # csv: the table, `image,label` with a header or without
    c.data.image_column = "image"  # csv with a header: the column of image names
    c.data.label_column = "label"  # csv with a header: the column of labels
    c.data.group_column = ""  # csv with a header: the column of patients or lesions, which are held out whole
    c.data.class_filter = ""  # keep only the images of this class; "" keeps all
    c.data.tfds_name = ""  # tfds: the data set's name
    c.data.split = "train"  # tfds: the split, slices such as train[:80%] included
    c.data.num_phantoms = 512  # phantom: how many images
    c.data.horizontal_flip = False  # mirror each image with probability 1/2, anew at each step
    c.data.holdout_fraction = 0.0  # share of each class kept from training, to evaluate on; 0 to 1, 1 excluded
    c.data.on_bad_image = "refuse"  # refuse | skip: what to do about files that cannot be read
    c.data.cache_dir = ""  # where decoded images are kept; "" is the user's cache folder
    c.data.device_budget_mb = 2048  # MiB of decoded images kept on each device; more are streamed; 0: always stream
    return c
