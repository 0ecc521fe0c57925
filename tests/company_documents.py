"""The papers of an invented company, in both languages and every format, and what people ask about them."""

from __future__ import annotations

from typing import NamedTuple

from tests.documents import MAKERS, Part, csv_table, plain


class Question(NamedTuple):
    """`fact` stands in the document `name`, and in a good answer; `page` where the format has pages."""

    text: str
    name: str
    fact: str
    page: int | None = None


_PARTS: dict[str, list[Part]] = {
    "employee-handbook.pdf": [
        Part(
            "Working hours",
            [
                "The working week at Halden Instruments has 37.5 hours. Everyone is in the office or "
                "reachable between 10:00 and 15:00; the rest of the day is free to arrange.",
                "Overtime must be agreed with the team lead beforehand and is paid at one and a half times "
                "the rate.",
            ],
        ),
        Part(
            "Leave",
            [
                "Employees have 27 days of paid annual leave. Up to 6 unused days can be carried over until "
                "the end of April of the following year.",
                "Parents may take 18 weeks of fully paid parental leave within two years of the birth.",
            ],
        ),
        Part(
            "Leaving the company",
            [
                "During the probation period of four months either side may end the contract with two weeks' "
                "notice.",
                "Afterwards the notice period is three months to the end of a quarter.",
            ],
        ),
    ],
    "产品说明书.pdf": [
        Part(
            "产品概述",
            [
                "海星H7是一款用于近海水质监测的浮标，能够测量水温、盐度、浊度和溶解氧。浮标外壳由玻璃钢制成，重量为43公斤。"
            ],
        ),
        Part(
            "安装与布放",
            [
                "布放前应检查锚链长度，锚链长度不得小于水深的三倍。布放作业至少需要三名人员和一艘带吊臂的工作船。",
                "海况超过四级时禁止布放浮标。",
            ],
        ),
        Part(
            "维护保养",
            [
                "太阳能板每两个月清洁一次。溶解氧探头的荧光帽使用寿命为十四个月，到期必须更换，否则测量值会偏低。"
            ],
        ),
    ],
    "supplier-contract.docx": [
        Part(
            "Subject of the agreement",
            [
                "Brackwater Castings supplies Halden Instruments with bronze housings for the pressure "
                "gauges of the Meridian series."
            ],
        ),
        Part(
            "Prices and payment",
            [
                "The price per housing is 84 euros for orders of at least 500 pieces. Invoices are payable "
                "within 45 days.",
            ],
        ),
        Part(
            "Warranty and liability",
            [
                "Brackwater Castings replaces housings that crack within 30 months of delivery free of "
                "charge.",
                "For late deliveries a penalty of 0.4 percent of the order value is due for each working "
                "day.",
            ],
        ),
    ],
    "差旅报销制度.docx": [
        Part("适用范围", ["本制度适用于公司全体正式员工和实习生因公出差产生的费用。"]),
        Part(
            "住宿标准",
            [
                "在一线城市出差，住宿费每晚不超过680元；在其他城市每晚不超过420元。超出标准的部分由员工自行承担。"
            ],
        ),
        Part(
            "报销流程",
            [
                "员工应在出差结束后十五个工作日内提交报销单，并附上发票原件。财务部在收到单据后七个工作日内付款。"
            ],
        ),
    ],
    "quarterly-review.pptx": [
        Part(
            "Revenue in the third quarter",
            ["Revenue rose to 12.8 million euros, 9 percent more than a year before."],
        ),
        Part(
            "New markets",
            ["The first Meridian gauges were sold to the waterworks of Valparaíso in August."],
        ),
        Part(
            "Risks", ["The tin price went up by a third, which costs about 310,000 euros of margin a year."]
        ),
    ],
    "研发规划.pptx": [
        Part("项目目标", ["明年研发部的重点是代号为“青鸾”的无人水面船项目，目标是连续航行九十天。"]),
        Part("人员与预算", ["青鸾项目由陆知远博士负责，团队共有二十二人，年度预算为一千八百六十万元。"]),
        Part("里程碑", ["第一艘样船计划在明年九月于舟山下水试航。"]),
    ],
    "spare-parts.xlsx": [
        Part(
            "Seals",
            [
                "Part HS-204 is a nitrile seal ring for the Meridian 40; it withstands 16 bar.",
                "Part HS-219 is a fluorocarbon seal ring for oil and stands temperatures up to 205 degrees.",
            ],
        ),
        Part("Springs", ["Part KF-77 is the return spring of the Meridian 60; it is made of Inconel."]),
    ],
    "培训课程.xlsx": [
        Part(
            "安全培训",
            ["潜水作业安全课程由秦若兰讲授，时长为三天，地点在青岛基地。", "消防演练每半年举行一次。"],
        ),
        Part("技能培训", ["传感器校准课程为期五天，结业考试八十五分及格。"]),
    ],
    "release-notes.html": [
        Part(
            "Meridian Cloud 4.2",
            ["Gauges can be read over LoRaWAN. The battery of a gauge now lasts for eleven years."],
        ),
        Part(
            "Meridian Cloud 4.1",
            [
                "Alarms are sent by text message. The export to spreadsheets had a limit of 20,000 rows "
                "until then."
            ],
        ),
    ],
    "公司简介.html": [
        Part(
            "公司历史",
            ["蓝湾海洋科技公司由工程师沈伯川于1998年在厦门创立，最初只有六名员工，生产手持式盐度计。"],
        ),
        Part("企业荣誉", ["2016年，公司的海星浮标获得海洋技术协会颁发的金锚奖。"]),
    ],
    "incident-2031.md": [
        Part(
            "What happened",
            [
                "On the night of 14 March the data centre in Tromsø lost its cooling. The gauges' readings "
                "were delayed by five hours; none was lost."
            ],
        ),
        Part(
            "Cause",
            ["A frozen condensate drain flooded the control cabinet of the second chiller."],
        ),
        Part(
            "Measures",
            ["A heating cable was laid along the drain, and a leak sensor was placed under each cabinet."],
        ),
    ],
    "数据中心值班手册.md": [
        Part("交接班", ["值班人员分三班，早班从七点开始。交接时必须当面核对未处理的告警清单。"]),
        Part(
            "停电处理",
            [
                "市电中断后，蓄电池可以支撑二十五分钟。值班人员须在十分钟内启动柴油发电机，并通知机房主管贺兰月。"
            ],
        ),
    ],
    "laboratory-rules.txt": [
        Part(
            "Laboratory rules",
            [
                "Visitors wear safety glasses and are accompanied at all times.",
                "Mercury from old manometers goes into the grey steel drum in room B-117, never into the "
                "sink.",
                "Ove Lindqvist keeps the keys of the calibration room.",
            ],
        )
    ],
    "canteen.txt": [
        Part(
            "Canteen",
            [
                "The canteen serves lunch from 11:30 to 13:45. On Thursdays there is pea soup with pancakes.",
                "Guests of employees eat at the price of 9.50 euros.",
            ],
        )
    ],
    "保密协议.txt": [
        Part(
            "保密协议",
            [
                "员工离职后三年内仍须对公司的技术资料保密。",
                "违反保密义务的，应当向公司支付相当于离职前十二个月工资的违约金。",
            ],
        )
    ],
    "customers.csv": [
        Part(
            "Waterworks",
            [
                "Aldermoor Waterworks has had a service contract of the level Gold since 2019; contact: "
                "Imogen Hale."
            ],
        ),
        Part("Breweries", ["The Nordlys Brewery rents 64 gauges and pays each January."]),
    ],
    "会议室.csv": [
        Part(
            "会议室", ["珊瑚厅可以容纳四十人，配有同声传译设备。", "灯塔厅可以容纳十二人，需要提前两天预订。"]
        )
    ],
}

_CODECS = {"canteen.txt": "utf-16", "保密协议.txt": "gb18030"}


def documents() -> dict[str, bytes]:
    """File name → bytes: every format, and text in three encodings, tables in two."""
    made = {name: MAKERS[name[name.rindex(".") :]](parts) for name, parts in _PARTS.items()}
    made |= {name: plain(_PARTS[name], codec) for name, codec in _CODECS.items()}
    return made | {"会议室.csv": csv_table(_PARTS["会议室.csv"], "gb18030")}


QUESTIONS = [
    Question("How many days of paid annual leave do employees have?", "employee-handbook.pdf", "27", 2),
    Question("What is the notice period after probation?", "employee-handbook.pdf", "three months", 3),
    Question("What penalty is due when Brackwater delivers late?", "supplier-contract.docx", "0.4 percent"),
    Question(
        "Where were the first Meridian gauges sold in August?", "quarterly-review.pptx", "Valparaíso", 2
    ),
    Question("Which seal ring stands temperatures up to 205 degrees?", "spare-parts.xlsx", "HS-219", 1),
    Question("How long does the battery of a gauge last?", "release-notes.html", "eleven years"),
    Question("Why did the second chiller's control cabinet flood?", "incident-2031.md", "condensate drain"),
    Question("Where does the mercury from old manometers go?", "laboratory-rules.txt", "B-117"),
    Question("What does the canteen serve on Thursdays?", "canteen.txt", "pea soup"),
    Question("Who is the contact at Aldermoor Waterworks?", "customers.csv", "Imogen Hale"),
    Question("溶解氧探头的荧光帽可以用多久？", "产品说明书.pdf", "十四个月", 3),
    Question("在一线城市出差，住宿费每晚最多多少钱？", "差旅报销制度.docx", "680"),
    Question("出差结束后多久之内要提交报销单？", "差旅报销制度.docx", "十五个工作日"),
    Question("青鸾项目由谁负责？", "研发规划.pptx", "陆知远", 2),
    Question("潜水作业安全课程由谁讲授？", "培训课程.xlsx", "秦若兰", 1),
    Question("蓝湾海洋科技公司是谁创立的？", "公司简介.html", "沈伯川"),
    Question("市电中断后蓄电池能支撑多长时间？", "数据中心值班手册.md", "二十五分钟"),
    Question("员工离职后几年内要保密？", "保密协议.txt", "三年"),
    Question("珊瑚厅可以容纳多少人？", "会议室.csv", "四十"),
    Question("海况超过几级时禁止布放浮标？", "产品说明书.pdf", "四级", 2),
]

UNANSWERED = [
    "What colour is the company's bicycle shed?",
    "Who won the chess tournament in Bergen?",
    "How much does the helicopter cost?",
    "What is the chief executive's middle name?",
    "When was the swimming pool renovated?",
    "公司的直升机是什么颜色的？",
    "火星基地的负责人是谁？",
    "谁赢得了去年的围棋比赛？",
    "幼儿园的学费是多少？",
    "游泳池什么时候开放？",
]
"""Ten that the documents do not answer, five in each language."""
