"""The text of the demo dialogues: lines of the grammar, with slots for details."""

from dataclasses import dataclass

from models.recipes.synth import Language

Line = tuple[str, str, str]  # role, emotion, template


@dataclass(frozen=True)
class Script:
    """A call between two people; ``shared`` slots keep one value through the whole call."""

    language: Language
    roles: dict[str, str]  # role to held-out espeak variant
    shared: dict[str, str]
    lines: tuple[Line, ...]


AGENT, CUSTOMER = "agent", "customer"
_MEN_RU = "Иван|Пётр|Сергей|Дмитрий|Алексей|Андрей|Михаил|Николай|Максим|Павел"
_MEN_EN = "John|Peter|Steven|David|Alex|Andrew|Michael|Nick|Max|Paul"

LOST_ORDER_RU = Script(
    "ru",
    {AGENT: "ru+f3", CUSTOMER: "ru+m6"},
    {"customer": _MEN_RU, "sum": "{hundreds} {tens}"},
    (
        (AGENT, "neutral", "Добрый день, меня зовут Ольга, чем могу помочь?"),
        (CUSTOMER, "neutral", "Здравствуйте, это {customer}, я звоню по поводу заказа."),
        (CUSTOMER, "angry", "Мой заказ не пришёл {past}, где он?"),
        (AGENT, "neutral", "Назовите, пожалуйста, номер заказа и дату."),
        (CUSTOMER, "angry", "Номер моего заказа {digits}."),
        (CUSTOMER, "angry", "Я жду ответа уже {tens} минут, это безобразие!"),
        (AGENT, "neutral", "Подождите минуту, я проверю ваш заказ."),
        (AGENT, "sad", "Мне очень жаль, но заказ потерян на складе."),
        (CUSTOMER, "angry", "Немедленно верните мои деньги, {sum} рублей!"),
        (AGENT, "neutral", "Мы вернём вам {sum} рублей {weekday}."),
        (CUSTOMER, "positive", "Замечательно, Ольга, вы мне очень помогли!"),
        (AGENT, "positive", "Спасибо за звонок, {customer}, до свидания."),
    ),
)

LOST_ORDER_EN = Script(
    "en",
    {AGENT: "en+f3", CUSTOMER: "en-us+m6"},
    {"customer": _MEN_EN, "sum": "{hundreds} and {tens}"},
    (
        (AGENT, "neutral", "Good afternoon, my name is Helen, how can I help you?"),
        (CUSTOMER, "neutral", "Hello, this is {customer}, I am calling about my order."),
        (CUSTOMER, "angry", "My order did not arrive {past}, where is it?"),
        (AGENT, "neutral", "Please tell me the order number and the date."),
        (CUSTOMER, "angry", "My order number is {digits}."),
        (CUSTOMER, "angry", "I have been waiting for {tens} minutes, this is awful!"),
        (AGENT, "neutral", "Please wait a minute, I will check your order."),
        (AGENT, "sad", "I am very sorry, but the order was lost in the warehouse."),
        (CUSTOMER, "angry", "Give me my money back now, {sum} dollars!"),
        (AGENT, "neutral", "We will return {sum} dollars to you {weekday}."),
        (CUSTOMER, "positive", "Excellent, Helen, you helped me a lot!"),
        (AGENT, "positive", "Thank you for calling, {customer}, goodbye."),
    ),
)

TICKET_RU = Script(
    "ru",
    {AGENT: "ru+steph2", CUSTOMER: "ru+Gene2"},
    {"customer": _MEN_RU, "sum": "{hundreds} {tens}"},
    (
        (AGENT, "neutral", "Здравствуйте, меня зовут Елена, чем могу помочь?"),
        (CUSTOMER, "neutral", "Я хочу вернуть билет, который получил {past}."),
        (AGENT, "neutral", "Назовите, пожалуйста, номер билета и дату."),
        (CUSTOMER, "neutral", "Номер билета {number}."),
        (CUSTOMER, "sad", "Я очень устал, мой билет так и не нашли {place}."),
        (AGENT, "neutral", "Подождите минуту, я проверю ваш билет."),
        (CUSTOMER, "angry", "С моей карты списали {sum} рублей {past}."),
        (AGENT, "sad", "К сожалению, Иван больше здесь не работает."),
        (AGENT, "neutral", "Мы вернём вам {sum} рублей {when}."),
        (CUSTOMER, "neutral", "Мой номер телефона {digits} {digits}."),
        (AGENT, "neutral", "Ваш билет будет готов {weekday} {time}."),
        (CUSTOMER, "positive", "Замечательно, Елена, вы мне очень помогли!"),
        (AGENT, "positive", "Спасибо за звонок, {customer}, до свидания."),
    ),
)

MEETING_VOICES = {
    "Анна": "ru+f3",
    "Борис": "ru+edward2",
    "Вера": "ru+steph2",
    "Глеб": "ru+m8",
}
MEETING_TOPICS = {"meeting": 0.8, "number": 0.06, "joy": 0.06, "sorrow": 0.04, "complaint": 0.04}
MEETING_MOODS = {"joy": "positive", "sorrow": "sad", "complaint": "angry"}
