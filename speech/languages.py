"""Names of languages: what requests call a language, and the code that models know it by."""

import re
import unicodedata

from speech.errors import InvalidRequest

DETECT = frozenset(("", "auto", "detect", "none", "null", "und", "undefined"))
"""What clients send where the language is to be detected."""

MAX_QUOTED_CHARS = 40

_SUBTAGS = re.compile(r"[-_.@]")

# A line: the code, ISO 639-1 or Whisper's own (haw, jw, yue), and the other names of the language:
# former codes, codes of ISO 639-2 and 639-3, English names, names in the language itself.
_TABLE = """
aa aar, Afar, Qafar
ab abk, Abkhazian, Аԥсшәа
ae ave, Avestan
af afr, Afrikaans
ak aka, Akan
am amh, Amharic, አማርኛ
an arg, Aragonese, aragonés
ar ara, Arabic, العربية
as asm, Assamese, অসমীয়া
av ava, Avaric
ay aym, Aymara
az aze, Azerbaijani, azərbaycan, azərbaycanca
ba bak, Bashkir, башҡорт, башҡортса
be bel, Belarusian, беларуская
bg bul, Bulgarian, български
bi bis, Bislama
bm bam, Bambara, bamanakan
bn ben, Bengali, Bangla, বাংলা
bo bod, tib, Tibetan, བོད་སྐད་
br bre, Breton, brezhoneg
bs bos, Bosnian, bosanski
ca cat, Catalan, català, Valencian
ce che, Chechen, нохчийн
ch cha, Chamorro
co cos, Corsican, corsu
cr cre, Cree
cs ces, cze, Czech, čeština
cu chu, Church Slavic, церковнослове́нскїй
cv chv, Chuvash, чӑваш чӗлхи, чӑвашла
cy cym, wel, Welsh, Cymraeg
da dan, Danish, dansk
de deu, ger, German, Deutsch
dv div, Divehi, ދިވެހިބަސް
dz dzo, Dzongkha, རྫོང་ཁ
ee ewe, eʋegbe
el ell, gre, Greek, Ελληνικά
en eng, English
eo epo, Esperanto
es spa, Spanish, español, Castilian
et est, Estonian, eesti
eu eus, baq, Basque, euskara
fa fas, per, Persian, فارسی, Farsi
ff ful, Fulah, Fula, Pulaar
fi fin, Finnish, suomi
fj fij, Fijian
fo fao, Faroese, føroyskt
fr fra, fre, French, français
fy fry, Western Frisian, Frysk
ga gle, Irish, Gaeilge
gd gla, Scottish Gaelic, Gàidhlig
gl glg, Galician, galego
gn grn, Guarani, avañe’ẽ
gu guj, Gujarati, ગુજરાતી
gv glv, Manx, Gaelg
ha hau, Hausa
haw Hawaiian, ʻŌlelo Hawaiʻi
he heb, Hebrew, עברית, iw
hi hin, Hindi, हिन्दी
ho hmo, Hiri Motu
hr hrv, Croatian, hrvatski
ht hat, Haitian, Haitian Creole, Kreyòl Ayisyen
hu hun, Hungarian, magyar
hy hye, arm, Armenian, հայերեն
hz her, Herero
ia ina, Interlingua
id ind, Indonesian, Indonesia, in, Bahasa Indonesia
ie ile, Interlingue
ig ibo, Igbo, Asụsụ Igbo
ii iii, Sichuan Yi, ꆈꌠꉙ
ik ipk, Inupiaq
io ido
is isl, ice, Icelandic, íslenska
it ita, Italian, italiano
iu iku, Inuktitut, ᐃᓄᒃᑎᑐᑦ
ja jpn, Japanese, 日本語
jw jav, Javanese, Jawa, jv
ka kat, geo, Georgian, ქართული
kg kon, Kongo
ki kik, Kikuyu, Gĩgĩkũyũ
kj kua, Kuanyama
kk kaz, Kazakh, қазақ тілі, қазақша
kl kal, Kalaallisut
km khm, Khmer, ខ្មែរ
kn kan, Kannada, ಕನ್ನಡ
ko kor, Korean, 한국어
kr kau, Kanuri
ks kas, Kashmiri, کٲشُر
ku kur, Kurdish, kurdî
kv kom, Komi
kw cor, Cornish, kernewek
ky kir, Kirghiz, Kyrgyz, кыргызча
la lat, Latin, Latina
lb ltz, Luxembourgish, Lëtzebuergesch, Letzeburgesch
lg lug, Ganda, Luganda
li lim, Limburgan, Limburgish
ln lin, Lingala, lingála
lo lao, ລາວ
lt lit, Lithuanian, lietuvių
lu lub, Luba-Katanga, Tshiluba
lv lav, Latvian, latviešu
mg mlg, Malagasy
mh mah, Marshallese
mi mri, mao, Maori, Māori
mk mkd, mac, Macedonian, македонски
ml mal, Malayalam, മലയാളം
mn mon, Mongolian, монгол
mr mar, Marathi, मराठी
ms msa, may, Malay, Melayu, Bahasa Melayu
mt mlt, Maltese, Malti
my mya, bur, Burmese, မြန်မာ, Myanmar
na nau, Nauru
nd nde, North Ndebele
ne nep, Nepali, नेपाली
ng ndo, Ndonga
nl nld, dut, Dutch, Nederlands, Flemish, Vlaams
nn nno, Norwegian Nynorsk, norsk nynorsk
no nor, Norwegian, norsk, nb, nob, Bokmål
nr nbl, South Ndebele
nv nav, Navajo, Diné Bizaad
ny nya, Chichewa, Nyanja
oc oci, Occitan
oj oji, Ojibwa
om orm, Oromo, Oromoo
or ori, Oriya, Odia, ଓଡ଼ିଆ
os oss, Ossetian, Ossetic, ирон
pa pan, Panjabi, Punjabi, ਪੰਜਾਬੀ
pi pli, Pali
pl pol, Polish, polski
ps pus, Pushto, Pashto, پښتو
pt por, Portuguese, português
qu que, Quechua, Runasimi
rm roh, Romansh, rumantsch
rn run, Rundi, Ikirundi
ro ron, rum, Romanian, română, mo, Moldavian, Moldovan
ru rus, Russian, русский
rw kin, Kinyarwanda, Ikinyarwanda
sa san, Sanskrit, संस्कृत भाषा
sc srd, Sardinian, sardu
sd snd, Sindhi, سنڌي
se sme, Northern Sami, davvisámegiella
sg sag, Sango, Sängö
si sin, Sinhala, සිංහල, Sinhalese
sk slk, slo, Slovak, slovenčina
sl slv, Slovenian, slovenščina
sm smo, Samoan
sn sna, Shona, chiShona
so som, Somali, Soomaali
sq sqi, alb, Albanian, shqip
sr srp, Serbian, српски, srpski
ss ssw, Swati, siSwati
st sot, Southern Sotho, Sesotho
su sun, Sundanese, Basa Sunda
sv swe, Swedish, svenska
sw swa, Swahili, Kiswahili
ta tam, Tamil, தமிழ்
te tel, Telugu, తెలుగు
tg tgk, Tajik, тоҷикӣ
th tha, Thai, ไทย
ti tir, Tigrinya, ትግርኛ
tk tuk, Turkmen, türkmen dili, türkmençe
tl tgl, Tagalog, Filipino, fil
tn tsn, Tswana, Setswana
to ton, Tonga, Tongan, lea fakatonga
tr tur, Turkish, Türkçe
ts tso, Tsonga, Xitsonga
tt tat, Tatar, татар, татарча
tw twi
ty tah, Tahitian
ug uig, Uighur, Uyghur, ئۇيغۇرچە
uk ukr, Ukrainian, українська
ur urd, Urdu, اردو
uz uzb, Uzbek, o‘zbek, o'zbek, oʻzbek, ўзбек
ve ven, Venda, Tshivenḓa
vi vie, Vietnamese, Tiếng Việt
vo vol, Volapük
wa wln, Walloon, walon
wo wol, Wolof
xh xho, Xhosa, IsiXhosa
yi yid, Yiddish, ייִדיש, ji
yo yor, Yoruba, Èdè Yorùbá
yue Cantonese, 粵語, 粤语, 廣東話, 广东话
za zha, Zhuang, Vahcuengh
zh zho, chi, Chinese, 中文, cmn, Mandarin, 汉语, 普通话
zu zul, Zulu, isiZulu
"""

LANGUAGES: dict[str, tuple[str, ...]] = {
    code: tuple(names.split(", "))
    for code, _, names in (line.partition(" ") for line in _TABLE.strip().splitlines())
}
"""Each code, and the other names of its language."""


def _key(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


_CODES = {_key(name): code for code, names in LANGUAGES.items() for name in (code, *names)}


def language_code(name: str | None) -> str | None:
    """The code of a language by any of its names, whatever its case; None: detect it.

    Codes may carry a region or script (``ru-RU``, ``zh_Hant``), which is dropped. Raises
    InvalidRequest for a name that is not known; its message lists the codes.
    """
    key = _key(name or "")
    if key in DETECT:
        return None
    code = _CODES.get(key) or _CODES.get(_SUBTAGS.split(key)[0])
    if code is None:
        raise InvalidRequest(
            f"language {key[:MAX_QUOTED_CHARS]!r} is not known; leave it out to detect it, or name "
            f"one of {', '.join(LANGUAGES)}"
        )
    return code
