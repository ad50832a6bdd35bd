"""Write the toy corpus: a small world in six languages, enough to run the whole pipeline on one CPU.

    python toy/make_corpus.py --output work/toy/corpus

A sentence says who does what to which thing, when or where: "old king sees red boat tomorrow". Each language has its
own words and word order; there are no articles, no agreement, no punctuation. Every meaning has exactly one sentence
in each language, so that a translation is either right or wrong. No meaning is used twice: what is tested was never
trained on, in any language.

The folder holds what the stages read:
    pairs1.jsonl, pairs2.jsonl      two samples of sentence pairs in all 30 directions (the paper's P1 and P2)
    mono/LANG.jsonl                 monolingual text (the paper's M)
    dictionaries/en-LANG.txt        MUSE-form dictionaries, with synonyms and homographs
    alpaca.json                     instructions: translation from and into English, or in all 30 directions
    flores/dev, flores/devtest      held-out sentences in Flores-101's form
    hf/                             the configuration and tokenizer of a tiny Llama
    manifest.json                   the arguments and counts
"""

import hashlib
import io
import itertools
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llamax import prompts
from llamax.files import InputError, Parser, read_json, replacing, run, write_json, write_text
from llamax.languages import resolve

LANGUAGES = ("en", "fr", "es", "zh", "ta", "th")

# One row a concept, one column a language in the order above. The first form is the one in the corpus; those after
# a slash are synonyms that only the dictionaries know. A sentence takes one word from each category, so a homograph
# (light: lamp or not heavy; fr grand: tall or big; es banco: bank or bench; ta ஞாயிறு: Sunday or sun) is told by its
# place. French and Spanish nouns that take an adjective are masculine, so that its form is right; Tamil verbs are in
# the honorific form, which has no gender.
CONCEPTS = {
    "person": """
        teacher/instructor professeur/enseignant  maestro/profesor      老师/教师 ஆசிரியர்/குரு ครู/อาจารย์
        doctor/physician   médecin/docteur        médico/doctor         医生/大夫 மருத்துவர்/வைத்தியர் หมอ/แพทย์
        king/monarch       roi/monarque           rey/monarca           国王/君主 அரசர்/மன்னர் กษัตริย์/ราชา
        farmer             fermier/agriculteur    granjero/agricultor   农民/农夫 விவசாயி/உழவர் ชาวนา/เกษตรกร
        soldier            soldat/militaire       soldado/militar       士兵/战士 சிப்பாய்/போர்வீரர் ทหาร
        judge/magistrate   juge/magistrat         juez/magistrado       法官 நீதிபதி/நடுவர் ผู้พิพากษา/ตุลาการ
        painter            peintre                pintor                画家/画师 ஓவியர் จิตรกร/ช่างเขียน
        writer/author      écrivain/auteur        escritor/autor        作家/作者 எழுத்தாளர்/நூலாசிரியர் นักเขียน/นักประพันธ์
        cook/chef          cuisinier/chef         cocinero/chef         厨师/厨子 சமையல்காரர் พ่อครัว/กุ๊ก
        merchant/trader    marchand/commerçant    comerciante/mercader  商人/商贩 வணிகர்/வியாபாரி พ่อค้า/ผู้ค้า
        student/pupil      étudiant/élève         estudiante/alumno     学生/学员 மாணவர்/மாணாக்கர் นักเรียน/นักศึกษา
        lawyer/attorney    avocat/juriste         abogado/letrado       律师 வழக்கறிஞர்/வக்கீல் ทนาย/ทนายความ
        fan                admirateur/supporteur  aficionado/admirador  粉丝/球迷 ரசிகர்/அபிமானி แฟนคลับ/ผู้ชื่นชอบ
        pitcher            lanceur                lanzador              投手 பந்துவீச்சாளர் ผู้ขว้าง/มือขว้าง
    """,
    "person adjective": """
        old/elderly        âgé/vieux              anciano/viejo         年老/年迈 வயதான/மூத்த แก่/ชรา
        young              jeune                  joven                 年轻 இளம்/இளைய หนุ่ม/เยาว์
        rich/wealthy       riche/fortuné          rico/adinerado        富有/富裕 பணக்கார/செல்வந்த มั่งคั่ง/ร่ำรวย
        poor/needy         pauvre/démuni          pobre/necesitado      贫穷/贫困 ஏழை/வறிய ยากจน/จน
        tall               grand                  alto                  高挑/高大 உயரமான/நெட்டையான สูง
        short              petit                  bajo                  矮小 குள்ளமான/கட்டையான เตี้ย
        bright/clever      intelligent/malin      inteligente/listo     聪明/机灵 அறிவார்ந்த/புத்திசாலியான ฉลาด/เฉลียว
        fair/just          juste/équitable        justo/equitativo      公正/公平 நியாயமான/நேர்மையான ยุติธรรม/เที่ยงธรรม
    """,
    "verb": """
        sees               voit/aperçoit          ve/divisa             看见/看到 பார்க்கிறார்/காண்கிறார் เห็น/มองเห็น
        buys/purchases     achète/acquiert        compra/adquiere       购买/买下 வாங்குகிறார் ซื้อ
        sells              vend                   vende                 出售/售卖 விற்கிறார் ขาย/จำหน่าย
        finds/discovers    trouve/découvre        encuentra/halla       找到/发现 கண்டெடுக்கிறார்/கண்டுபிடிக்கிறார் พบ/เจอ
        loses              perd/égare             pierde/extravía       丢失/遗失 இழக்கிறார்/தொலைக்கிறார் สูญเสีย/ทำหาย
        wants/desires      veut/désire            quiere/desea          想要/渴望 விரும்புகிறார் ต้องการ/อยากได้
        loves/adores       aime/adore             ama/adora             喜爱/热爱 நேசிக்கிறார் รัก/หลงรัก
        hides/conceals     cache/dissimule        esconde/oculta        隐藏/藏匿 மறைக்கிறார்/ஒளிக்கிறார் ซ่อน/ปิดบัง
        carries            porte/transporte       lleva/carga           携带/搬运 சுமக்கிறார் ถือ/แบก
        draws/sketches     dessine                dibuja/traza          描绘/绘画 வரைகிறார்/தீட்டுகிறார் วาด
        washes/cleans      lave/nettoie           lava/limpia           清洗/洗涤 கழுவுகிறார்/அலம்புகிறார் ล้าง/ชำระ
        repairs/fixes      répare                 repara/arregla        修理/维修 சரிசெய்கிறார்/பழுதுபார்க்கிறார் ซ่อม/ซ่อมแซม
        steals             vole/dérobe            roba/hurta            偷走/盗窃 திருடுகிறார் ขโมย/ลัก
        records            enregistre/consigne    registra/anota        记录/记载 பதிவுசெய்கிறார் บันทึก/จด
    """,
    "thing adjective": """
        old                ancien/vieux           antiguo/viejo         古老/陈旧 பழைய/பழமையான เก่า/โบราณ
        new                neuf/nouveau           nuevo                 崭新/全新 புதிய/புது ใหม่
        big/large          grand/gros             grande                巨大/庞大 பெரிய ใหญ่/โต
        small/little       petit                  pequeño/chico         小巧/微小 சிறிய/சிறு เล็ก/จิ๋ว
        short              court/bref             corto/breve           短小 குட்டையான/குறுகிய สั้น
        bright/shiny       brillant/éclatant      brillante/luminoso    明亮/光亮 பிரகாசமான/ஒளிமயமான สว่าง/เจิดจ้า
        light              léger                  ligero/liviano        轻便/轻巧 இலேசான เบา
        heavy              lourd/pesant           pesado                沉重/笨重 கனமான/பாரமான หนัก
        square             carré                  cuadrado              方形 சதுரமான สี่เหลี่ยม
        red                rouge/vermeil          rojo/colorado         红色/鲜红 சிவப்பு/செந்நிற แดง
    """,
    "thing": """
        book               livre/bouquin          libro                 书本/书籍 புத்தகம்/நூல் หนังสือ
        hat                chapeau                sombrero              帽子 தொப்பி หมวก
        ring               anneau/bague           anillo/sortija        戒指/指环 மோதிரம்/கணையாழி แหวน
        boat/vessel        bateau/navire          barco/buque           小船/船只 படகு/ஓடம் เรือ/นาวา
        mirror             miroir/glace           espejo                镜子 கண்ணாடி/ஆடி กระจก/คันฉ่อง
        knife              couteau                cuchillo              刀子/小刀 கத்தி มีด
        basket             panier/corbeille       cesto/canasto         篮子/筐子 கூடை ตะกร้า/กระบุง
        bench              banc                   banco                 长椅/长凳 பெஞ்சு/இருக்கை ม้านั่ง
        fan                ventilateur            ventilador            电扇/风扇 மின்விசிறி/விசிறி พัดลม
        pitcher/jug        pichet/carafe          jarro/cántaro         水罐/水壶 குடுவை/ஜாடி เหยือก/คนโท
        light/lamp         luminaire/lampe        foco/lámpara          电灯/灯具 விளக்கு/தீபம் ดวงไฟ/โคมไฟ
        sun                soleil                 sol                   太阳/日头 ஞாயிறு/சூரியன் อาทิตย์/ตะวัน
        record             registre               registro              记录/档案 பதிவு/ஆவணம் บันทึก
        avocado            avocat                 aguacate/palta        鳄梨/牛油果 வெண்ணெய்ப்பழம் อะโวคาโด
    """,
    "time": """
        now                maintenant/actuellement ahora/actualmente    现在/如今 இப்போது/தற்போது ตอนนี้/ขณะนี้
        tomorrow           demain                 mañana                明天/明日 நாளை พรุ่งนี้
        daily              quotidiennement/journellement diariamente/cotidianamente 每天/天天 தினமும்/நாள்தோறும் ทุกวัน
        night              nuit                   noche                 夜晚/夜里 இரவு/இராத்திரி กลางคืน/ราตรี
        summer             été                    verano/estío          夏天/夏季 கோடை/கோடைகாலம் ฤดูร้อน/หน้าร้อน
        winter             hiver                  invierno              冬天/冬季 குளிர்காலம் ฤดูหนาว/หน้าหนาว
        spring/springtime  printemps              primavera             春天/春季 வசந்தம்/இளவேனில் ฤดูใบไม้ผลิ
        sunday             dimanche               domingo               周日/星期日 ஞாயிறு อาทิตย์/วันอาทิตย์
        friday             vendredi               viernes               周五/星期五 வெள்ளி ศุกร์/วันศุกร์
    """,
    "place": """
        market             marché                 mercado               市场 சந்தை/அங்காடி ตลาด
        fair               foire                  feria                 集市/庙会 கண்காட்சி/பொருட்காட்சி งานวัด
        square             place/esplanade        plaza/explanada       广场 சதுக்கம் จัตุรัส/ลาน
        bank               banque                 banco                 银行 வங்கி ธนาคาร/แบงก์
        school             école                  escuela/colegio       学校/学堂 பள்ளி/பாடசாலை โรงเรียน
        beach              plage                  playa                 海滩/沙滩 கடற்கரை ชายหาด
        forest/woods       forêt/bois             bosque/selva          森林/树林 காடு/வனம் ป่า/พงไพร
    """,
}

# The order of a sentence's parts (the fields of Meaning).
ADJECTIVE_LAST = ("person", "person_adjective", "verb", "thing", "thing_adjective", "time_or_place")
WORD_ORDER = {
    "en": ("person_adjective", "person", "verb", "thing_adjective", "thing", "time_or_place"),
    "fr": ADJECTIVE_LAST,
    "es": ADJECTIVE_LAST,
    "zh": ("time_or_place", "person_adjective", "person", "verb", "thing_adjective", "thing"),
    "ta": ("time_or_place", "person_adjective", "person", "thing_adjective", "thing", "verb"),
    "th": ADJECTIVE_LAST,
}
UNSPACED = ("zh", "th")
SEPARATOR = {"fr": " ", "es": "\t", "zh": "\t", "ta": " ", "th": "\t"}  # in the dictionaries: MUSE has files of both
# Pieces of the tokenizer never reach across this mark (U+001F, which no text holds).
MARK = "\x1f"
MOST_MEANINGS = 1_000_000  # of the table's four and a half million; more would take long to draw


class Concept(NamedTuple):
    """What words stand for: the forms in each language, the corpus's first."""

    category: str
    forms: tuple[tuple[str, ...], ...]

    def word(self, lang):
        return self.forms[LANGUAGES.index(lang)][0]


class Meaning(NamedTuple):
    """What a sentence says, language aside: a Concept for each part, None for a part left out."""

    person_adjective: Concept | None
    person: Concept
    verb: Concept
    thing_adjective: Concept | None
    thing: Concept
    time_or_place: Concept | None


def read_concepts():
    """{category: [Concept, …]} of the table."""
    world = {}
    for category, table in CONCEPTS.items():
        rows = [line.split() for line in table.strip().splitlines()]
        for row in rows:
            assert len(row) == len(LANGUAGES), f"{len(row)} words, expected {len(LANGUAGES)}: {row}"
        world[category] = [Concept(category, tuple(tuple(cell.split("/")) for cell in row)) for row in rows]
    return world


WORLD = read_concepts()


def get_args():
    parser = Parser(
        description="Write the toy corpus with its tokenizer and model configuration. A second run does nothing.",
    )
    parser.add_argument("--output", type=Path, default=Path("work/toy/corpus"), metavar="DIR", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    parser.add_argument("--pairs", type=int, default=2500, help="pairs a sample and two languages, half each way")
    parser.add_argument("--mono", type=int, default=2000, help="monolingual sentences a language")
    parser.add_argument("--instructions", type=int, default=1000, help="instructions a direction that they name")
    parser.add_argument("--directions", choices=("english", "all"), default="english",
        help="that instructions name: the 10 from or to English, or all 30 (default %(default)s)")  # fmt: skip
    parser.add_argument("--test", type=int, default=50, help="held-out sentences, in dev and again in devtest")
    parser.add_argument("--vocab-size", type=int, default=2000, help="pieces of the tokenizer")
    args = parser.parse_args()
    least = {"seed": 0, "pairs": 2, "mono": 1, "instructions": 1, "test": 1, "vocab_size": 1}
    problems = [
        f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least {bound}"
        for name, bound in least.items()
        if getattr(args, name) < bound
    ]
    total = sum(meanings_needed(args).values())
    if total > MOST_MEANINGS:
        problems.append(
            f"--pairs, --mono, --instructions and --test need {total:,} different meanings in all, "
            f"expected at most {MOST_MEANINGS:,}; give smaller numbers"
        )
    if problems:
        raise InputError("; ".join(problems))
    return args


def language_pairs():
    return list(itertools.combinations(LANGUAGES, 2))


def instruction_directions(args):
    """Those that instructions name."""
    return [d for d in itertools.permutations(LANGUAGES, 2) if args.directions == "all" or "en" in d]


def meanings_needed(args):
    """How many meanings each part of the corpus takes."""
    return {
        "pairs1": args.pairs * len(language_pairs()),
        "pairs2": args.pairs * len(language_pairs()),
        "mono": args.mono * len(LANGUAGES),
        "instructions": args.instructions * len(instruction_directions(args)),
        "dev": args.test,
        "devtest": args.test,
    }


def draw_meaning(rng):
    return Meaning(
        person_adjective=rng.choice(WORLD["person adjective"]) if rng.random() < 0.5 else None,
        person=rng.choice(WORLD["person"]),
        verb=rng.choice(WORLD["verb"]),
        thing_adjective=rng.choice(WORLD["thing adjective"]) if rng.random() < 0.5 else None,
        thing=rng.choice(WORLD["thing"]),
        time_or_place=rng.choice(WORLD["time"] + WORLD["place"]) if rng.random() < 0.6 else None,
    )


def draw_meanings(rng, needed):
    """{part: its meanings}, no meaning twice.

    All are drawn before they are shared out: there are only 2,744 sentences of three words, and the part that draws
    last would get none.
    """
    drawn, total = {}, sum(needed.values())  # a dict, because a set's order changes from run to run
    while len(drawn) < total:
        drawn[draw_meaning(rng)] = None
    meanings = list(drawn)
    rng.shuffle(meanings)
    meanings = iter(meanings)
    return {part: list(itertools.islice(meanings, count)) for part, count in needed.items()}


def words(meaning, lang):
    """The words of the meaning's one sentence in a language, in order."""
    return [concept.word(lang) for part in WORD_ORDER[lang] if (concept := getattr(meaning, part))]


def sentence(meaning, lang):
    return ("" if lang in UNSPACED else " ").join(words(meaning, lang))


def pair_records(rng, meanings):
    """Pair records, as many for each two languages, half of them either way, shuffled."""
    pairs = language_pairs()
    count = len(meanings) // len(pairs)
    records = []
    for i, meaning in enumerate(meanings):
        src, tgt = pairs[i // count] if i % count % 2 == 0 else reversed(pairs[i // count])
        record = {"src": sentence(meaning, src), "tgt": sentence(meaning, tgt), "src_lang": src, "tgt_lang": tgt}
        records.append(record | {"loss": "all", "origin": "toy"})
    rng.shuffle(records)
    return records


def instruction_examples(rng, meanings, directions):
    """Alpaca-form examples, as many for each direction, shuffled."""
    count = len(meanings) // len(directions)
    examples = []
    for i, meaning in enumerate(meanings):
        src, tgt = directions[i // count]
        instruction = prompts.TRANSLATE.format(source=resolve(src).name, target=resolve(tgt).name)
        example = {"instruction": instruction, "input": sentence(meaning, src), "output": sentence(meaning, tgt)}
        examples.append(example)
    rng.shuffle(examples)
    return examples


def dictionary(lang):
    """The lines of en-LANG: every English form of a concept with every form in the language. They are sorted, so
    that the order does not tell which translation the corpus uses."""
    column = LANGUAGES.index(lang)
    concepts = itertools.chain.from_iterable(WORLD.values())
    entries = {entry for concept in concepts for entry in itertools.product(concept.forms[0], concept.forms[column])}
    return [SEPARATOR[lang].join(entry) for entry in sorted(entries)]


def tokenizer_texts(parts, directions):
    """What is trained on, each meaning in all six languages, and the prompts.

    A mark stands between the words of Chinese and Thai, or their pieces would span several. It also stands where a
    prompt's line or a response begins: in use no dummy prefix comes before those, so that their first word has to be
    a piece without one.
    """
    for meaning in itertools.chain(*(meanings for part, meanings in parts.items() if part not in ("dev", "devtest"))):
        for lang in LANGUAGES:
            if lang in UNSPACED:
                yield MARK + MARK.join(words(meaning, lang))
            else:
                yield sentence(meaning, lang)
    for i, meaning in enumerate(parts["instructions"]):
        src, tgt = directions[i % len(directions)]
        prompt = prompts.alpaca_prompt(prompts.TRANSLATE.format(source=resolve(src).name, target=resolve(tgt).name))
        yield from prompt.replace("\n", f"\n{MARK}").split("\n")
        for lang in LANGUAGES:
            if lang not in UNSPACED:
                yield MARK + sentence(meaning, lang)


def train_tokenizer(texts, vocab_size):
    """The bytes of a SentencePiece model of Llama's kind."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=True,
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            pretokenization_delimiter=MARK,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,  # the pieces must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition("] ")[2]
        raise InputError(f"--vocab-size {vocab_size}: no tokenizer of that size ({reason}); give another") from None
    return model.getvalue()


def hf_files(vocab_size):
    """{name: value} of the Hugging Face JSON files of a Llama of about a million weights."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.08,  # about 1 / sqrt(hidden_size); 0.02 suits wide models and learns late here
        "rope_theta": 10000.0,  # transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},  # transformers 5
        "max_position_embeddings": 256,
        "vocab_size": vocab_size,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    tokenizer_config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
    }
    generation_config = {"bos_token_id": 1, "eos_token_id": 2}
    return {
        "config.json": config,
        "generation_config.json": generation_config,
        "tokenizer_config.json": tokenizer_config,
    }


def write_jsonl(path, records):
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_corpus(folder, args):
    """Write all files and return their counts."""
    rng = random.Random(args.seed)
    parts = draw_meanings(rng, meanings_needed(args))
    for sample in ("pairs1", "pairs2"):
        write_jsonl(folder / f"{sample}.jsonl", pair_records(rng, parts[sample]))
    for i, lang in enumerate(LANGUAGES):
        meanings = parts["mono"][i * args.mono : (i + 1) * args.mono]
        write_jsonl(folder / "mono" / f"{lang}.jsonl", [{"text": sentence(m, lang), "lang": lang} for m in meanings])
    write_json(folder / "alpaca.json", instruction_examples(rng, parts["instructions"], instruction_directions(args)))
    for lang in LANGUAGES:
        names = {"dev": resolve(lang).flores101_dev, "devtest": resolve(lang).flores101_devtest}
        for part, name in names.items():
            lines = [sentence(meaning, lang) + "\n" for meaning in parts[part]]
            write_text(folder / "flores" / part / f"{name}.{part}", "".join(lines))
    entries = {}
    for lang in SEPARATOR:
        lines = dictionary(lang)
        entries[f"en-{lang}"] = len(lines)
        write_text(folder / "dictionaries" / f"en-{lang}.txt", "".join(f"{line}\n" for line in lines))
    model = train_tokenizer(tokenizer_texts(parts, instruction_directions(args)), args.vocab_size)
    with replacing(folder / "hf" / "tokenizer.model") as partial:
        partial.write_bytes(model)
    for name, value in hf_files(args.vocab_size).items():
        write_json(folder / "hf" / name, value)
    return {
        "concepts": sum(len(concepts) for concepts in WORLD.values()),
        "pairs1": len(parts["pairs1"]),
        "pairs2": len(parts["pairs2"]),
        "mono": dict.fromkeys(LANGUAGES, args.mono),
        "instructions": len(parts["instructions"]),
        "dev": args.test,
        "devtest": args.test,
        "dictionaries": entries,
        "vocabulary": args.vocab_size,
    }


def already_there(output, identity):
    """Whether the folder holds this very corpus; an InputError if it holds anything else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not output.is_dir():
        raise InputError(f"--output {output}: is a file, expected a folder; choose another")
    if not (output / "manifest.json").is_file():
        raise InputError(f"--output {output}: holds something other than a toy corpus; choose another folder")
    manifest = read_json(output / "manifest.json", "--output")
    if not isinstance(manifest, dict) or any(manifest.get(key) != value for key, value in identity.items()):
        found = manifest.get("arguments") if isinstance(manifest, dict) else manifest
        raise InputError(
            f"--output {output}: holds a toy corpus of other arguments or words: {found}, "
            f"expected {identity['arguments']}; remove the folder or choose another"
        )
    return True


def main():
    args = get_args()
    arguments = {name: value for name, value in vars(args).items() if name != "output"}
    # The words' digest, so that a corpus made from an older table is not taken for this one.
    table = hashlib.blake2b(json.dumps([CONCEPTS, WORD_ORDER]).encode(), digest_size=16).hexdigest()
    identity = {"arguments": arguments, "table": table}
    if already_there(args.output, identity):
        print(f"{args.output}: complete, nothing to do")
        return
    output = args.output.resolve()
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        counts = write_corpus(partial, args)
        write_json(partial / "manifest.json", identity | {"counts": counts})
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(
        f"{args.output}: 2 x {counts['pairs1']:,} pairs in 30 directions, {args.mono:,} sentences a language, "
        f"{counts['instructions']:,} instructions, 2 x {args.test} test sentences, {args.vocab_size} pieces"
    )


if __name__ == "__main__":
    run(main)
