# SPDX-License-Identifier: Apache-2.0
"""Words to make sentences of, by language: the synthesisers need text, and sense doesn't matter."""

WORDS = {
    "en": (
        "the quick morning light fell over every open window and people began to move about slowly I think we "
        "should ask them before the meeting starts because nobody told me what happened yesterday maybe you "
        "could bring some apples bread and fresh coffee when you come home from work tomorrow evening our "
        "little boat was floating down a wide river under pale blue clouds he would never believe how much "
        "fun we had at the beach with my mother father brother and five good friends please remember to buy a "
        "map of the whole village where music plays all summer long a small grey bird sat on the roof and "
        "watched a group of children throwing snowballs at each other which of these books have you already "
        "read this computer can show moving pictures without asking any far away machine for help good "
        "evening ladies and gentlemen welcome to the show our voice becomes a face and everyone may look at "
        "it for as long as they like hello thank you very much"
    ),
    "de": (
        "wir haben gestern abend einen langen weg durch den wald genommen und dabei viele schöne vögel "
        "gesehen bitte mach das fenster auf weil es hier zu warm ist morgen früh fahren meine freunde wieder "
        "nach hause"
    ),
    "fr": (
        "nous avons beaucoup parlé de la musique pendant que les enfants jouaient dans le jardin il faut que "
        "tu viennes avec moi demain matin pour voir la belle maison au bord du lac"
    ),
    "es": (
        "mañana por la tarde vamos a comer pan con aceite y tomate mientras miramos los barcos que salen del "
        "puerto mi hermano siempre cuenta historias muy largas pero divertidas"
    ),
    "it": (
        "questa mattina abbiamo preparato una buona colazione con latte pane e marmellata poi siamo andati a "
        "piedi fino alla piazza dove tutti aspettavano la musica"
    ),
    "nl": (
        "wij gaan morgen met de fiets naar het strand en nemen brood kaas en een warme trui mee omdat het "
        "daar altijd hard waait"
    ),
    "pt": (
        "amanhã cedo vamos comprar peixe fresco no mercado perto da praia e depois fazemos um bom jantar para "
        "toda a família"
    ),
    "pl": (
        "dzisiaj rano poszliśmy do lasu i zebraliśmy dużo grzybów potem babcia ugotowała pyszną zupę a "
        "wieczorem wszyscy słuchali muzyki przy otwartym oknie"
    ),
    "sv": (
        "i morgon ska vi åka båt till den lilla ön och äta frukost på bryggan medan solen går upp över havet "
        "och fåglarna sjunger i träden"
    ),
    "tr": (
        "bugün sabah erkenden kalktık ve deniz kenarında uzun bir yürüyüş yaptık sonra arkadaşlarımızla çay "
        "içip güzel bir kitap okuduk"
    ),
    "ru": (
        "сегодня утром мы пошли гулять в парк и увидели там много маленьких птиц потом бабушка приготовила "
        "вкусный обед и все долго говорили о море"
    ),
    "fi": (
        "tänään aamulla kävelimme pitkin rantaa ja puhuimme kesästä sitten joimme kahvia ja luimme vanhaa "
        "kirjaa jossa oli paljon kuvia"
    ),
}
"""Language -> words between spaces, in an order that makes sense now and then."""
